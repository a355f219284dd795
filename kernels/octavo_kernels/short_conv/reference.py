"""The convolution in plain PyTorch, tap by tap over all tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.state_use import StateUse


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, query_start: Tensor, states: Tensor, use: StateUse
) -> Tensor:
    (tokens, channels), taps = x.shape, weight.shape[1]
    before, sequences = taps - 1, len(query_start) - 1
    starts, rows = query_start.long(), torch.arange(sequences, device=x.device)
    row = torch.repeat_interleave(rows, starts.diff(), output_size=tokens)
    # every sequence's tokens behind what its state holds
    place = torch.arange(tokens, device=x.device) + (row + 1) * before
    held = (starts[:-1] + rows * before)[:, None] + torch.arange(before, device=x.device)
    inputs = x.new_empty(tokens + sequences * before, channels)
    inputs[place], inputs[held] = x, use.read(states)
    out = torch.zeros(tokens, channels, dtype=torch.float32, device=x.device)
    for tap in range(taps):  # each product is rounded before it is added: a fused step may differ between lanes
        out += inputs[place - before + tap].float() * weight[:, tap].float()
    if bias is not None:
        out += bias.float()
    states[use.targets] = inputs[place[use.saved][:, None] + torch.arange(1 - before, 1, device=x.device)]
    return out.to(x.dtype)
