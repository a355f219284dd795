"""Reads the weights of a Hugging Face directory: one safetensors file, or several with an index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from octavo.errors import ModelError
from octavo.model_files import read_json, reading
from octavo.models.families.settings import quantization_config
from octavo.models.spec import ModelSpec
from octavo.models.weights.encoder_names import UNUSED_BY_ENCODERS
from octavo.models.weights.mxfp4 import join_mxfp4
from octavo.models.weights.names import Naming, hf_naming
from octavo.models.weights.quantized_files import join_quantized
from octavo.models.weights.split import cut, split
from octavo.models.weights.stored import StoredTensor
from octavo.safetensors_header import read_header, weight_files

_UNUSED = re.compile(
    r"(vision_tower|visual|multi_modal_projector|mtp(_\w+)?)\.|.*\.rotary_emb\.inv_freq$|.*\.(attn|attention)\.(masked_)?bias$"
)
"""Tensors that are skipped: vision models, guesses of further tokens, and what old checkpoints hold of
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
        tensors = [part for tensor in tensors for part in split(tensor, naming, spec)]
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
        yield cut(tensor, rows, columns)
