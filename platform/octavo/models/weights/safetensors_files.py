"""Reads the weights of a Hugging Face directory: one safetensors file, or several with an index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from octavo.errors import ModelError
from octavo.model_files import read_json, reading
from octavo.models.families.settings import quantization_config
from octavo.models.spec import ModelSpec
from octavo.models.weights.encoder_names import UNUSED_BY_ENCODERS
from octavo.models.weights.fused import check_rows, experts_of, name_of, some_of, stacked_rows
from octavo.models.weights.mxfp4 import join_mxfp4
from octavo.models.weights.names import Naming, hf_naming
from octavo.models.weights.quantized_files import join_quantized
from octavo.models.weights.stored import StoredTensor
from octavo.safetensors_header import read_header, weight_files
from octavo_kernels.linear.formats import Array
from octavo_kernels.linear.quantized import QuantizedWeight, rows_of

_UNUSED = re.compile(
    r"(vision_tower|multi_modal_projector|mtp_\w+)\.|.*\.rotary_emb\.inv_freq$|.*\.(attn|attention)\.(masked_)?bias$"
)
"""Tensors that are skipped: Gemma 3's vision model, ERNIE's guesses of further tokens, and what old checkpoints hold of
frequencies, which the config gives, and of causal masks."""


def read_safetensors(folder: Path, spec: ModelSpec) -> list[StoredTensor]:
    """The tensors of a directory that a model of `spec` uses; the parts of each quantised matrix are joined.

    Raises:
        ModelError: no safetensors file, a shard is missing, or a file is damaged.
    """
    with reading(folder):
        naming = hf_naming(spec)
        tensors = [tensor for file in weight_files(folder) for tensor in _read_headers(file, naming)]
        if quantized := quantization_config(read_json(folder / "config.json")):
            join = join_mxfp4 if quantized["quant_method"] == "mxfp4" else partial(join_quantized, config=quantized)
            tensors = join(tensors)
        tensors = [tensor for tensor in tensors if not naming.is_behind(tensor.name, spec.num_layers)]
        tensors = [part for tensor in tensors for part in _split(tensor, naming, spec)]
        tensors = [tensor for tensor in tensors if not _is_empty_bias(tensor, spec)]
        unused = set() if spec.head is None else set(spec.head.stored)
        unused |= {"lm_head.weight"} if spec.tied_embeddings else set()
        skipped = _UNUSED if spec.encoder is None else UNUSED_BY_ENCODERS
        tensors = [tensor for tensor in tensors if tensor.name not in unused and not skipped.match(tensor.name)]
        _refuse_codes(tensors)
        return tensors


_WEIGHTS = ("F16", "BF16", "F32", "F64")


def _refuse_codes(tensors: list[StoredTensor]) -> None:
    bare = [tensor for tensor in tensors if tensor.quantized is None and tensor.blocks is None]
    codes = [tensor for tensor in bare if tensor.dtype not in _WEIGHTS]
    if codes:
        raise ModelError(
            f"{codes[0].name} is stored as {codes[0].dtype}: codes without scales, which are no weights; "
            f"weights are {', '.join(_WEIGHTS)}, or quantised as quantization_config in config.json says"
        )


def _is_empty_bias(tensor: StoredTensor, spec: ModelSpec) -> bool:
    """AutoGPTQ writes zeros as the biases of layers that have none."""
    found = re.search(r"\.(.+)_proj\.bias$", tensor.name)
    if found is None:
        return False
    wanted = {"o": spec.out_bias, "gate": spec.mlp_bias, "up": spec.mlp_bias, "down": spec.mlp_bias}
    return not wanted.get(found[1].rpartition(".")[2], spec.qkv_bias) and not any(
        map(torch.any, tensor.read(None, None))
    )


def _split(tensor: StoredTensor, naming: Naming, spec: ModelSpec) -> list[StoredTensor]:
    """The parts of a tensor that stacks several, such as q, k and v; other tensors as they are."""
    if (found := naming.stack_of(tensor.name)) is None:
        return [_as_vector(tensor, naming)]
    names, stack = found
    rows = stacked_rows(stack, spec)
    each = [tensor]
    if stack.experts:
        each = [_expert(tensor, i, transposed=stack.transposed) for i in range(experts_of(tensor, spec))]
    check_rows(tensor.name, each[0].shape[0], rows)
    return [_part(one, name_of(name, i), rows[part]) for i, one in enumerate(each) for part, name in names]


def _as_vector(tensor: StoredTensor, naming: Naming) -> StoredTensor:
    """What chooses experts, where it is stored as a matrix of one row; taps of a convolution without its groups."""
    if tensor.shape[1:2] == (1,) and len(tensor.shape) == 3:

        def taps(rows: range | None, columns: range | None) -> Iterator[Tensor]:
            return (_cut(values[:, 0], rows, columns) for values in tensor.read(None, None))

        return replace(tensor, shape=(tensor.shape[0], tensor.shape[2]), read=taps)
    bias = naming.parts.get("router.choice_bias")
    if bias is None or not tensor.name.endswith(bias) or tensor.shape[:-1] != (1,):
        return tensor

    def read(_rows: range | None, _columns: range | None) -> Iterator[Tensor]:
        return (values.flatten() for values in tensor.read(None, None))

    return replace(tensor, shape=tensor.shape[1:], read=read)


def _expert(tensor: StoredTensor, index: int, *, transposed: bool) -> StoredTensor:
    """One expert's matrix, or its bias."""
    shape = tensor.shape[1:]

    def read(rows: range | None, columns: range | None) -> Iterator[Tensor]:
        values = torch.cat(list(tensor.read(range(index, index + 1), None)))[0]
        yield _cut(values.mT if transposed and values.ndim == 2 else values, rows, columns)

    def blocks(rows: range | None, columns: range | None) -> Array | None:
        assert tensor.blocks is not None
        if columns is not None and len(columns) < shape[-1]:
            return None
        values = tensor.blocks(range(index, index + 1), None)
        return values if values is None or rows is None else values[rows.start : rows.stop : rows.step]

    return replace(
        tensor,
        shape=shape[::-1] if transposed else shape,
        num_bytes=tensor.num_bytes // tensor.shape[0],
        read=read,
        blocks=None if tensor.blocks is None else blocks,
    )


def _part(tensor: StoredTensor, name: str, rows: list[range]) -> StoredTensor:
    """Some of a tensor's rows, as a tensor of its own."""
    size = sum(map(len, rows))

    def read(wanted: range | None, columns: range | None) -> Iterator[Tensor]:
        for run in some_of(rows, wanted or range(size)):
            yield from tensor.read(run, columns)

    def quantized() -> QuantizedWeight:
        assert tensor.quantized is not None
        return rows_of(tensor.quantized(), torch.tensor([row for run in rows for row in run]))

    def blocks(wanted: range | None, columns: range | None) -> Array | None:
        assert tensor.blocks is not None
        found = [tensor.blocks(run, columns) for run in some_of(rows, wanted or range(size))]
        return None if any(run is None for run in found) else np.concatenate(found)  # type: ignore[arg-type]

    return replace(
        tensor,
        name=name,
        shape=(size, *tensor.shape[1:]),
        num_bytes=tensor.num_bytes * size // tensor.shape[0],
        read=read,
        quantized=None if tensor.quantized is None else quantized,
        blocks=None if tensor.blocks is None else blocks,
    )


def _read_headers(file: Path, naming: Naming) -> list[StoredTensor]:
    found = []
    for stored, entry in read_header(file).items():
        name, read = naming.own_name(stored), partial(_read, file, stored)
        tensor = StoredTensor(name, entry.shape, entry.num_bytes, read, dtype=entry.dtype)
        found.append(_transposed(tensor) if naming.is_transposed(name, entry.shape) else tensor)
    return found


def _transposed(tensor: StoredTensor) -> StoredTensor:
    def read(rows: range | None, columns: range | None) -> Iterator[Tensor]:
        yield torch.cat(list(tensor.read(columns, rows))).T.contiguous()

    return replace(tensor, shape=tensor.shape[::-1], read=read)


def _read(file: Path, name: str, rows: range | None, columns: range | None) -> Iterator[Tensor]:
    # Memory-mapped: only the page cache holds data, and closing the file removes the map.
    with reading(file), safe_open(file, framework="pt", device="cpu") as tensors:
        tensor = tensors.get_tensor(name)
        tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
        yield _cut(tensor, rows, columns)


def _cut(values: Tensor, rows: range | None, columns: range | None) -> Tensor:
    values = values if rows is None else values[rows.start : rows.stop : rows.step]
    return values if columns is None else values[:, columns.start : columns.stop]
