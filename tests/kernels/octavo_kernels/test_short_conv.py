"""The short convolution: what torch's computes, in any chunks and beside anybody, to the bit."""

import numpy as np
import pytest
import torch

from octavo_kernels.short_conv import short_conv
from octavo_kernels.state_use import StateUse

CHANNELS = 40


def whole(x, weight, bias):
    """Torch's own, over one sequence from its start."""
    padded = torch.nn.functional.pad(x.float().T[None], (weight.shape[1] - 1, 0))
    bias = None if bias is None else bias.float()
    return torch.nn.functional.conv1d(padded, weight.float()[:, None], bias, groups=len(weight))[0].T


def in_chunks(sequences, weight, bias, states, seed):
    """All sequences, in steps of random chunks of some of them; sequence i has state i."""
    random, done, out = np.random.default_rng(seed), [0] * len(sequences), [[] for _ in sequences]
    while left := [i for i, x in enumerate(sequences) if done[i] < len(x)]:
        rows = random.permutation(left)[: random.integers(1, len(left) + 1)].tolist()
        chunks = [sequences[i][done[i] : done[i] + int(random.choice([1, 1, 2, 9]))] for i in rows]
        starts = torch.tensor(np.cumsum([0, *map(len, chunks)]), dtype=torch.int32)
        source = torch.tensor([i if done[i] else -1 for i in rows])
        use = StateUse(source, starts[1:].long() - 1, torch.tensor(rows))
        y = short_conv(torch.cat(chunks), weight, bias, starts, states, use)
        for i, part in zip(rows, y.split([len(chunk) for chunk in chunks]), strict=True):
            out[i].append(part)
            done[i] += len(part)
    return [torch.cat(parts) for parts in out]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", [2, 3, 4])
def test_it_is_the_same_convolution_in_any_chunks(dtype, taps):
    generator = torch.Generator().manual_seed(taps)
    sequences = [torch.randn(n, CHANNELS, generator=generator).to(dtype) for n in (30, 1, 2, 17, 64)]
    weight, bias = torch.randn(CHANNELS, taps, generator=generator).to(dtype), torch.randn(CHANNELS).to(dtype)
    states = torch.full((len(sequences), taps - 1, CHANNELS), torch.nan, dtype=dtype)
    ours = in_chunks(sequences, weight, bias, states, 0)
    for x, y in zip(sequences, ours, strict=True):
        torch.testing.assert_close(y, whole(x, weight, bias).to(dtype), atol=1e-5, rtol=0.01 if y.itemsize == 2 else 0)
    for seed in range(1, 4):
        states = torch.full_like(states, torch.nan)
        assert all(map(torch.equal, in_chunks(sequences, weight, bias, states, seed), ours))


def test_what_a_step_leaves_on_the_way_can_be_gone_on_from():
    x, weight = torch.randn(20, CHANNELS), torch.randn(CHANNELS, 4)
    states, all_of_it = torch.zeros(5, 3, CHANNELS), torch.tensor([0, 20], dtype=torch.int32)
    use = StateUse(torch.tensor([-1]), torch.tensor([0, 7, 19]), torch.tensor([4, 2, 0]))
    y = short_conv(x, weight, None, all_of_it, states, use)
    for tokens, state in ((1, 4), (8, 2)):
        rest = torch.tensor([0, 20 - tokens], dtype=torch.int32)
        nothing = torch.zeros(0, dtype=torch.int64)
        again = short_conv(x[tokens:], weight, None, rest, states, StateUse(torch.tensor([state]), nothing, nothing))
        assert torch.equal(again, y[tokens:])
    assert torch.equal(states[0], x[-3:])


def test_shapes_that_do_not_fit_are_refused():
    x, weight, starts = torch.zeros(2, CHANNELS), torch.zeros(CHANNELS, 3), torch.tensor([0, 2], dtype=torch.int32)
    use = StateUse.nothing(1, x.device)
    for bad in ((x[:, :8], weight, torch.zeros(1, 2, CHANNELS)), (x, weight, torch.zeros(1, 3, CHANNELS))):
        with pytest.raises(ValueError, match="must be"):
            short_conv(bad[0], bad[1], None, starts, bad[2], use)
