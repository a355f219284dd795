"""From a `Source` straight to packed matrices for the native decoder, each in the format that the file stores it in.

Nothing is dequantised on the way: a GGUF file's blocks are moved into the packed layout bit for bit, and bf16, float16
and float32 matrices keep their type (float32 becomes bfloat16 only where that was asked for).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from octavo.errors import ModelError
from octavo.gguf_header import Entry, read_directory
from octavo.models.load import check_loadable
from octavo.models.rope import cos_sin_table
from octavo.models.spec import ModelSpec
from octavo.models.weights.gguf_file import read_gguf
from octavo.models.weights.layout import Slot, allocate, slots
from octavo.models.weights.names import Naming, gguf_naming, hf_naming
from octavo.models.weights.safetensors_files import read_safetensors
from octavo.models.weights.stored import StoredTensor, compare, half_split_rows
from octavo.source import Source
from octavo_kernels.decoder import PackedLayer, PackedLinear, PackedModel
from octavo_kernels.linear import FORMATS, PackedWeight
from octavo_kernels.linear.formats import GROUPED

_MATRICES = ("q", "k", "v", "out", "gate", "up", "down")
_NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm", "post_attention_norm", "post_mlp_norm")

Part = tuple[int | None, str, str]
"""A tensor's layer, part and kind, as in `Slot`."""


def unpackable_formats(source: Source) -> list[str]:
    """The block formats of a GGUF file that cannot be packed; empty means `load_packed` takes the source.

    Raises:
        ModelError: the file is damaged.
    """
    if source.kind != "gguf":
        return []
    return sorted({entry.format for entry in read_directory(source.path).values()} - set(FORMATS))


def load_packed(
    source: Source,
    *,
    dtype: torch.dtype,
    quantization: str | None = None,
    max_model_len: int | None = None,
    progress: bool = False,
) -> tuple[ModelSpec, PackedModel]:
    """Read a model's weights into packed matrices.

    Args:
        source: a Hugging Face directory or a GGUF file.
        dtype: float32 keeps every stored value; bfloat16 rounds float32 matrices of a directory to it.
        quantization: None, or "gguf" for a GGUF file.
        max_model_len: tokens of the longest sequence; None takes the model's own limit.
        progress: draw a progress bar on stderr.

    Raises:
        ModelError: the checkpoint is damaged, or of a kind that is not supported.
        ConfigError: a quantization that is not supported, or more positions than the model has.
    """
    spec, positions = check_loadable(source, quantization, max_model_len)
    naming = hf_naming(spec) if source.kind == "hf" else gguf_naming(spec)
    stored = read_safetensors(source.path, spec) if source.kind == "hf" else read_gguf(source.path)
    entries = read_directory(source.path) if source.kind == "gguf" else {}
    places = slots(allocate(spec, dtype, torch.device("meta")), spec)
    by_name = {naming.stored_name(slot): slot for slot in places}
    compare(by_name, stored)
    parts: dict[Part, Tensor | PackedWeight] = {}
    with tqdm(total=len(stored), desc=f"Packing {source.name}", disable=not progress) as bar:
        for tensor in stored:
            slot = by_name[tensor.name]
            entry, order = entries.get(tensor.name), _row_order(slot, naming, spec)
            is_vector = slot.is_norm or slot.kind == "bias"
            packed = _vector(tensor, slot, naming, order) if is_vector else _matrix(tensor, entry, dtype, order)
            parts[slot.layer, slot.part, slot.kind] = packed
            bar.update()
    return spec, _assemble(spec, parts, positions, dtype)


def _vector(tensor: StoredTensor, slot: Slot, naming: Naming, order: Tensor | None) -> Tensor:
    values = torch.cat([chunk.float() for chunk in tensor.chunks()])
    values = values if order is None else values[order.argsort()]
    return values + naming.norm_offset if slot.is_norm else values


def _row_order(slot: Slot, naming: Naming, spec: ModelSpec) -> Tensor | None:
    """Where each stored row belongs, where that is not its own place."""
    if naming.interleaved_rope and slot.part in ("q", "k"):
        return half_split_rows(len(slot.target), spec.head_dim)
    return None


def _matrix(tensor: StoredTensor, entry: Entry | None, dtype: torch.dtype, order: Tensor | None) -> PackedWeight:
    if entry is not None and entry.format in GROUPED:
        blocks = np.fromfile(entry.file, np.uint8, count=entry.num_bytes, offset=entry.offset)
        return PackedWeight.from_blocks(_reordered(blocks.reshape(entry.shape[0], -1), order), entry.format)
    values = _floats(entry) if entry is not None else torch.cat(list(tensor.chunks()))
    if values.dtype == torch.float32 and dtype == torch.bfloat16:
        values = values.bfloat16()
    if order is not None:
        values = values[order.argsort()]
    return PackedWeight.from_tensor(values)


def _floats(entry: Entry) -> Tensor:
    """An unquantised matrix of a GGUF file in its own type."""
    types = {"F32": (np.float32, torch.float32), "F16": (np.float16, torch.float16), "BF16": (np.int16, torch.bfloat16)}
    if entry.format not in types:
        raise ModelError(f"{entry.name}: GGUF tensors of type {entry.format} are not supported")
    stored, dtype = types[entry.format]
    values = np.fromfile(entry.file, stored, count=entry.num_bytes // np.dtype(stored).itemsize, offset=entry.offset)
    return torch.from_numpy(values).view(dtype).view(entry.shape)


def _reordered(rows: np.ndarray, order: Tensor | None) -> np.ndarray:
    return rows if order is None else rows[order.argsort().numpy()]


def _assemble(
    spec: ModelSpec, parts: dict[Part, Tensor | PackedWeight], positions: int, dtype: torch.dtype
) -> PackedModel:
    ropes = [spec.layer_rope(layer) for layer in range(spec.num_layers)]
    tables = {rope: cos_sin_table(rope, positions) for rope in dict.fromkeys(ropes)}
    embedding = _weight(parts, None, "embedding")
    return PackedModel(
        embedding=embedding,
        head=PackedLinear(embedding if spec.tied_embeddings else _weight(parts, None, "lm_head")),
        final_norm=_tensor(parts, None, "final_norm"),
        layers=[_layer(parts, i, tables[ropes[i]], spec.windows[i]) for i in range(spec.num_layers)],
        query_heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        activation=spec.activation,
        norm_eps=spec.norm_eps,
        attention_scale=spec.attention_scale,
        attention_softcap=spec.attention_softcap,
        logit_softcap=spec.logit_softcap,
        # transformers rounds the scale to the embedding's type before it multiplies; so do we
        embedding_scale=torch.tensor(spec.embedding_scale, dtype=dtype).item(),
    )


def _layer(parts: dict[Part, Tensor | PackedWeight], index: int, rotary: Tensor, window: int | None) -> PackedLayer:
    linears = {
        name: PackedLinear(_weight(parts, index, name), parts.get((index, name, "bias")))  # type: ignore[arg-type]
        for name in _MATRICES
    }
    norms = {name: parts.get((index, name, "weight")) for name in _NORMS}
    return PackedLayer(**linears, **norms, rotary=rotary, window=window)  # type: ignore[arg-type]


def _weight(parts: dict[Part, Tensor | PackedWeight], layer: int | None, part: str) -> PackedWeight:
    weight = parts[layer, part, "weight"]
    assert isinstance(weight, PackedWeight)
    return weight


def _tensor(parts: dict[Part, Tensor | PackedWeight], layer: int | None, part: str) -> Tensor:
    tensor = parts[layer, part, "weight"]
    assert isinstance(tensor, Tensor)
    return tensor
