"""Quantised matrices of a Hugging Face directory, each of which is stored as several tensors.

Layouts, of a matrix of n outputs and k inputs; codes lie in int32 words, lowest bits first:

GPTQ (AutoGPTQ, GPTQModel): qweight [k / per word, n], qzeros [groups, n / per word], scales [groups, n], and g_idx [k],
    the group of each input. Zero points are stored minus 1, except in "gptq_v2".
AWQ (AutoAWQ's "gemm"): qweight [k, n / 8], qzeros [groups, n / 8], scales [groups, n]; the eight outputs of a word lie
    in the order 0 2 4 6 1 3 5 7.
compressed-tensors, packed: weight_packed [n, k / per word], weight_scale [n, groups], weight_zero_point
    [n / per word, groups], weight_g_idx [k], weight_shape; codes and zero points are signed, plus half their range.
compressed-tensors, not packed: weight [n, k] int8 or float8_e4m3fn, weight_scale [n, groups], [n, 1] or [1],
    weight_zero_point int8.

Activations are never quantised, even if the checkpoint says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.models.weights.stored import StoredTensor
from octavo_kernels.linear.grouped import Float8Weight, GroupedWeight
from octavo_kernels.linear.quantized import QuantizedWeight

Module = Mapping[str, StoredTensor]
"""A matrix's tensors by the last part of their names."""

_PARTS = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "compressed-tensors": ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx",
                           "weight_shape"),
}  # fmt: skip
_NEEDED = {"gptq": "qweight", "awq": "qweight", "compressed-tensors": "weight_scale"}
"""The tensor whose presence shows that a matrix is quantised."""

_UNUSED = re.compile(r".*\.(input|output|q|k|v)_(scale|zero_point)$")
"""Scales of activations and KV caches, which are ignored."""

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Position in a word of each of eight outputs."""


def join_quantized(stored: list[StoredTensor], config: Mapping[str, Any]) -> list[StoredTensor]:
    """Join the tensors of each quantised matrix into one, named NAME.weight.

    Args:
        stored: all tensors.
        config: `quantization_config`, as `quantization.check_stored` takes it.

    Raises:
        ModelError: a matrix's tensors are incomplete or contradict each other.
    """
    method = config["quant_method"]
    modules: dict[str, dict[str, StoredTensor]] = {}
    for tensor in stored:
        module, _, part = tensor.name.rpartition(".")
        if part in _PARTS[method]:
            modules.setdefault(module, {})[part] = tensor
    quantized = {module: parts for module, parts in modules.items() if _NEEDED[method] in parts}
    taken = {tensor.name for parts in quantized.values() for tensor in parts.values()}
    left = [tensor for tensor in stored if tensor.name not in taken and not _UNUSED.match(tensor.name)]
    return left + [_joined(name, parts, config) for name, parts in quantized.items()]


def _joined(name: str, parts: Module, config: Mapping[str, Any]) -> StoredTensor:
    try:
        shape, read = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}[config["quant_method"]](
            parts, config
        )
    except KeyError as missing:
        raise ModelError(f"the checkpoint lacks {name}.{missing.args[0]}") from None

    def whole() -> QuantizedWeight:
        try:
            weight = read()
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"the quantised tensors of {name} contradict each other: {error}") from error
        if weight.shape != shape:
            raise ModelError(f"the quantised tensors of {name} contradict each other: {weight.shape} is not {shape}")
        return weight

    def dequantized(rows: range | None, columns: range | None) -> Iterator[Tensor]:
        values = whole().dequantize()
        values = values if rows is None else values[rows.start : rows.stop]
        yield values if columns is None else values[:, columns.start : columns.stop]

    size = sum(tensor.num_bytes for tensor in parts.values())
    return replace(next(iter(parts.values())), name=f"{name}.weight", shape=shape, num_bytes=size, read=dequantized,
                   quantized=whole)  # fmt: skip


Reader = tuple[tuple[int, int], Callable[[], QuantizedWeight]]
"""A matrix's shape, derived from the shapes of its parts, and the function that reads it."""


def _gptq(parts: Module, config: Mapping[str, Any]) -> Reader:
    bits = config["bits"]
    offset = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    words, n = parts["qweight"].shape
    zeros, scales = parts["qzeros"], parts["scales"]

    def read() -> GroupedWeight:
        codes = _unpack(_read(parts["qweight"]).T, bits)
        zero = (_unpack(_read(zeros), bits).to(torch.int16) + offset).T
        order = _order(_read(parts["g_idx"]), len(codes[0]), len(zero[0])) if "g_idx" in parts else None
        codes = codes if order is None else codes[:, order]
        return GroupedWeight.from_codes(codes, bits, _read(scales).T, _zeros(zero, bits), order)

    return (n, words * 32 // bits), read


def _awq(parts: Module, _config: Mapping[str, Any]) -> Reader:
    k, words = parts["qweight"].shape
    zeros, scales = parts.get("qzeros"), parts["scales"]

    def read() -> GroupedWeight:
        codes = _unpack(_read(parts["qweight"]), 4, _AWQ_PLACES).T
        zero = None if zeros is None else _zeros(_unpack(_read(zeros), 4, _AWQ_PLACES).T, 4)
        return GroupedWeight.from_codes(codes, 4, _read(scales).T, zero)

    return (words * 8, k), read


def _compressed(parts: Module, _config: Mapping[str, Any]) -> Reader:
    if "weight_packed" not in parts:
        n, k = parts["weight"].shape
        return (n, k), partial(_plain, parts)
    n, k = (int(size) for size in _read(parts["weight_shape"]))
    return (n, k), partial(_packed, parts, n, k)


_READERS = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}


def _packed(parts: Module, n: int, k: int) -> GroupedWeight:
    packed, scale = _read(parts["weight_packed"]), _read(parts["weight_scale"])
    bits = packed.shape[1] * 32 // k
    zero = None
    if "weight_zero_point" in parts:
        zero = _zeros(_unpack(_read(parts["weight_zero_point"]).T, bits)[:, :n].T, bits)
    order = _order(_read(parts["weight_g_idx"]), k, scale.shape[1]) if "weight_g_idx" in parts else None
    codes = _unpack(packed, bits)
    return GroupedWeight.from_codes(codes if order is None else codes[:, order], bits, scale, zero, order)


def _plain(parts: Module) -> QuantizedWeight:
    weight, scale = _read(parts["weight"]), _read(parts["weight_scale"])
    scale = scale.view(-1, 1) if scale.ndim < 2 else scale
    scale = scale.expand(len(weight), -1)
    if weight.dtype == torch.float8_e4m3fn:
        return Float8Weight(weight, scale.float().contiguous())
    if weight.dtype != torch.int8:
        raise ValueError(f"the weight is of type {str(weight.dtype).removeprefix('torch.')}")
    zero = None
    if "weight_zero_point" in parts:
        stored = _read(parts["weight_zero_point"])
        zero = _zeros((stored.view(len(stored) if stored.ndim else 1, -1).to(torch.int16) + 128).expand_as(scale), 8)
    return GroupedWeight.from_codes((weight.to(torch.int16) + 128).to(torch.uint8), 8, scale, zero)


def _read(tensor: StoredTensor) -> Tensor:
    return torch.cat(list(tensor.read(None, None))) if tensor.shape else next(tensor.read(None, None))


def _unpack(words: Tensor, bits: int, places: tuple[int, ...] | None = None) -> Tensor:
    """[rows, words] int32 -> codes [rows, words * per word] uint8; a word's i-th code lies at `places[i]` of it."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    shifts = shifts if places is None else shifts[list(places)]
    codes: Tensor = (words.contiguous().unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.to(torch.uint8).view(len(words), -1)


def _zeros(zero: Tensor, bits: int) -> Tensor | None:
    """Zero points as in `GroupedWeight`: None if all are the middle of the range."""
    if bool((zero == 2 ** (bits - 1)).all()):
        return None
    if int(zero.max()) > 255:
        raise ValueError("a zero point is above 255")
    return zero.to(torch.uint8)


def _order(group_of: Tensor, k: int, groups: int) -> Tensor | None:
    """The order of columns that puts groups together; None if they lie so already."""
    if torch.equal(group_of.cpu().long(), torch.arange(k) // (k // groups)):
        return None
    if not bool((group_of.bincount(minlength=groups) == k // groups).all()):
        raise ValueError("groups have different numbers of columns")
    return group_of.argsort(stable=True)
