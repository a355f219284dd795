"""Reads the weights of a Hugging Face directory: one safetensors file, or several with an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from octavo.errors import ModelError
from octavo.model_files import read_json, reading
from octavo.models.families import quantization_config
from octavo.models.spec import ModelSpec
from octavo.models.weights.encoder_names import UNUSED_BY_ENCODERS
from octavo.models.weights.fused import fused_names
from octavo.models.weights.names import plain_name
from octavo.models.weights.quantized_files import join_quantized
from octavo.models.weights.stored import StoredTensor
from octavo.safetensors_header import read_header, weight_files

_UNUSED = re.compile(r"(vision_tower|multi_modal_projector)\.|.*\.rotary_emb\.inv_freq$")
"""Tensors that are skipped: Gemma 3's vision model, and the frequencies in old Llama checkpoints, which the config
gives."""


def read_safetensors(folder: Path, spec: ModelSpec) -> list[StoredTensor]:
    """The tensors of a directory that a model of `spec` uses; the parts of each quantised matrix are joined.

    Raises:
        ModelError: no safetensors file, a shard is missing, or a file is damaged.
    """
    with reading(folder):
        tensors = [tensor for file in weight_files(folder) for tensor in _read_headers(file)]
        if quantized := quantization_config(read_json(folder / "config.json")):
            tensors = join_quantized(tensors, quantized)
        tensors = [part for tensor in tensors for part in _split(tensor, spec.family)]
        tensors = [tensor for tensor in tensors if not _is_empty_bias(tensor, spec)]
        unused = set() if spec.head is None else set(spec.head.stored)
        unused |= {"lm_head.weight"} if spec.tied_embeddings else set()
        skipped = _UNUSED if spec.encoder is None else UNUSED_BY_ENCODERS
        tensors = [tensor for tensor in tensors if tensor.name not in unused and not skipped.match(tensor.name)]
        _refuse_codes(tensors)
        return tensors


_WEIGHTS = ("F16", "BF16", "F32", "F64")


def _refuse_codes(tensors: list[StoredTensor]) -> None:
    codes = [tensor for tensor in tensors if tensor.quantized is None and tensor.dtype not in _WEIGHTS]
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


def _split(tensor: StoredTensor, family: str) -> list[StoredTensor]:
    """The parts of a tensor that stacks several, such as MPT's `Wqkv`; other tensors as they are."""
    names = fused_names(tensor.name, family)
    if not names or tensor.shape[0] % len(names):
        return [tensor]
    size, columns = tensor.shape[0] // len(names), tensor.shape[1:]

    def part(i: int) -> Callable[[range | None, range | None], Iterator[Tensor]]:
        def read(rows: range | None, columns: range | None) -> Iterator[Tensor]:
            rows = rows or range(size)
            return tensor.read(range(i * size + rows.start, i * size + rows.stop), columns)

        return read

    return [
        replace(tensor, name=name, shape=(size, *columns), num_bytes=tensor.num_bytes // len(names), read=part(i))
        for i, name in enumerate(names)
    ]


def _read_headers(file: Path) -> list[StoredTensor]:
    return [
        StoredTensor(plain_name(name), entry.shape, entry.num_bytes, partial(_read, file, name), dtype=entry.dtype)
        for name, entry in read_header(file).items()
    ]


def _read(file: Path, name: str, rows: range | None, columns: range | None) -> Iterator[Tensor]:
    # Memory-mapped: only the page cache holds data, and closing the file removes the map.
    with reading(file), safe_open(file, framework="pt", device="cpu") as tensors:
        tensor = tensors.get_tensor(name)
        tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
        tensor = tensor if rows is None else tensor[rows.start : rows.stop]
        yield tensor if columns is None else tensor[:, columns.start : columns.stop]
