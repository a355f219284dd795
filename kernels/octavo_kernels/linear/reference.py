"""Linear layers with packed weights in plain PyTorch: what the C++ computes, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.linear.formats import FLOATS, GROUP, GROUPED, Array
from octavo_kernels.linear.pack import unpack_blocks, unpack_floats


def dequantize(data: Array, name: str, n: int, k: int) -> Tensor:
    """Packed weights as float32 [N, K]: bit for bit what GGUF's definition of the format gives."""
    if name in FLOATS:
        values = torch.from_numpy(unpack_floats(data, name, n, k))
        return values.view(torch.bfloat16).float() if name == "BF16" else values.float()
    codes, scale, minimum = _unpack(data, name, n)
    values = _subgroups(codes.float() - GROUPED[name].zero, scale) * scale.unsqueeze(-1)
    return (values if minimum is None else values + minimum.unsqueeze(-1)).view(n, k)


def quantized_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [R, K] and `weight` [N, K], dequantised in float32 and then of `x`'s type."""
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def linear_exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """float32 throughout: `x` [R, K], dequantised `weight` [N, K]."""
    return torch.nn.functional.linear(x.float(), weight, bias)


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear_exact`, with `x` rounded to bf16: products of bf16, sums in float32."""
    return linear_exact(rounded_bf16(x), weight, bias)


def rounded_bf16(x: Tensor) -> Tensor:
    """What `linear_bf16` multiplies, in float32."""
    return x.bfloat16().float()


def rounded_int8(x: Tensor) -> Tensor:
    """What `linear_int8` multiplies, [R, K] in float32."""
    codes, scale = quantize(x)
    return (codes * scale.unsqueeze(-1)).view(x.shape)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as codes -127..127 for each 32 values, rounded to even, and their scales.

    Args:
        x: [R, K], K a multiple of 32.

    Returns:
        Codes [R, K / 32, 32] and scales [R, K / 32], both float32.
    """
    groups = x.float().view(len(x), x.shape[1] // GROUP, GROUP)
    top = groups.abs().amax(-1)
    inverse = torch.where(top > 1e-30, torch.tensor(127.0) / top, 0.0)  # 127 / top would be 127 (1 / top): not the same
    return (groups * inverse.unsqueeze(-1)).round(), top / 127


def linear_int8(x: Tensor, data: Array, name: str, n: int, bias: Tensor | None) -> Tensor:
    """Grouped weights times quantised activations.

    For each group of 32 columns, in order: exact integer dot products of the codes (less the zero point), one for each
    scale of the weights; each times its scale, then plus each minimum times the sum of the activations' codes; the
    whole times the activations' scale, added to the sum. Multiplications that end in an addition are fused with it.
    """
    codes, scale, minimum = _unpack(data, name, n)
    x_codes, x_scale = quantize(x)
    w = _subgroups(codes.float() - GROUPED[name].zero, scale)
    a = x_codes.view(len(x), scale.shape[1], x.shape[1] // scale.shape[1])
    parts = scale.shape[1] // x_scale.shape[1]  # scales in a group: 1 or 2
    total = torch.zeros(len(x), n)
    for group in range(x_scale.shape[1]):
        value, at = torch.zeros(len(x), n), range(group * parts, (group + 1) * parts)
        for i in at:
            value = _fma(a[:, i] @ w[:, i].T, scale[:, i], value)  # integers below 2^24: exact
        if minimum is not None:
            for i in at:
                value = _fma(a[:, i].sum(-1, keepdim=True), minimum[:, i], value)
        total = _fma(value, x_scale[:, group, None], total)
    return total if bias is None else total + bias


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c rounded once (twice where the float64 sum lies within 2^-29 of a tie)."""
    return (a.double() * b.double() + c.double()).float()


def _subgroups(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.view(len(codes), scale.shape[1], -1)


def _unpack(data: Array, name: str, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
    codes, scale, minimum = unpack_blocks(data, name, n)
    return torch.from_numpy(codes), torch.from_numpy(scale), None if minimum is None else torch.from_numpy(minimum)
