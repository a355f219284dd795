"""Weights of a Hugging Face directory: one safetensors file, or several with an index."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.errors import ModelError
from octavo.models.families import quantization_config
from octavo.models.json_file import read_json
from octavo.models.spec import ModelSpec
from octavo.models.weights.quantized_files import join_quantized
from octavo.models.weights.stored import StoredTensor

_UNUSED = re.compile(r"(vision_tower|multi_modal_projector)\.|.*\.rotary_emb\.inv_freq$")
"""Gemma 3's eyes, and the frequencies that old Llama checkpoints store (the config says the same)."""


def read_safetensors(folder: Path, spec: ModelSpec) -> list[StoredTensor]:
    """The tensors of a directory that a model of `spec` uses, quantised matrices put together from theirs.

    Raises:
        ModelError: no safetensors file, a shard is missing, or a file is damaged.
    """
    tensors = [tensor for file in _files(folder) for tensor in _read_headers(file)]
    if quantized := quantization_config(read_json(folder / "config.json")):
        tensors = join_quantized(tensors, quantized)
        tensors = [tensor for tensor in tensors if not _is_empty_bias(tensor, spec)]
    tensors = [part for tensor in tensors for part in _split_heads(tensor)]
    unused = {"lm_head.weight"} if spec.tied_embeddings else set()
    return [tensor for tensor in tensors if tensor.name not in unused and not _UNUSED.match(tensor.name)]


def _is_empty_bias(tensor: StoredTensor, spec: ModelSpec) -> bool:
    """AutoGPTQ writes zeros as the biases of layers that have none."""
    found = re.search(r"\.(.+)_proj\.bias$", tensor.name)
    if found is None:
        return False
    wanted = {"o": spec.out_bias, "gate": spec.mlp_bias, "up": spec.mlp_bias, "down": spec.mlp_bias}
    return not wanted.get(found[1].rpartition(".")[2], spec.qkv_bias) and not any(
        map(torch.any, tensor.read(None, None))
    )


def _split_heads(tensor: StoredTensor) -> list[StoredTensor]:
    """MPT's `Wqkv` as the three matrices it holds, one below the other; other tensors as they are."""
    if not tensor.name.endswith(".Wqkv.weight"):
        return [tensor]
    size, columns = tensor.shape[0] // 3, tensor.shape[1]

    def part(i: int) -> Callable[[range | None, range | None], Iterator[Tensor]]:
        def read(rows: range | None, columns: range | None) -> Iterator[Tensor]:
            rows = rows or range(size)
            return tensor.read(range(i * size + rows.start, i * size + rows.stop), columns)

        return read

    stem = tensor.name.removesuffix("Wqkv.weight")
    return [
        StoredTensor(f"{stem}{name}.weight", (size, columns), tensor.num_bytes // 3, part(i))
        for i, name in enumerate("qkv")
    ]


def plain_name(name: str) -> str:
    """A tensor's name without what wraps the text model: `model.`, `language_model.model.`, ..."""
    for prefix in ("transformer.", "language_model.", "model.", "language_model."):
        name = name.removeprefix(prefix)
    return name


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(_weight_map(index).values()))]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no .safetensors file; other weight formats are not read")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which its index names")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index} has no weight_map")
    return weight_map


def _open(file: Path) -> AbstractContextManager[Any]:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged or not a safetensors file: {error}") from error


def _read_headers(file: Path) -> list[StoredTensor]:
    with _open(file) as tensors:
        return [_stored(file, name, tensors.get_slice(name)) for name in tensors.keys()]  # noqa: SIM118


def _stored(file: Path, name: str, piece: Any) -> StoredTensor:
    shape = tuple(piece.get_shape())
    bits = int(re.sub(r"\D", "", piece.get_dtype().partition("_")[0]) or 8)
    return StoredTensor(plain_name(name), shape, math.prod(shape) * bits // 8, partial(_read, file, name))


def _read(file: Path, name: str, rows: range | None, columns: range | None) -> Iterator[Tensor]:
    # Memory-mapped: nothing is held but the page cache, and the map goes with the file's handle.
    with _open(file) as tensors:
        tensor = tensors.get_tensor(name)
        tensor = tensor if rows is None else tensor[rows.start : rows.stop]
        yield tensor if columns is None else tensor[:, columns.start : columns.stop]
