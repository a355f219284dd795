"""From a `Source` to a `Decoder` or an `Encoder`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.config import DType, LoadFormat
from octavo.errors import ModelError
from octavo.models.decoder import Decoder
from octavo.models.encoder import Encoder
from octavo.models.families.record import Config
from octavo.models.families.settings import quantization_config
from octavo.models.parallel import Share, TPGroup, share_of
from octavo.models.quantization import Rounding, parse_rounding
from octavo.models.source_spec import check_loadable, read_config
from octavo.models.spec import ModelSpec
from octavo.models.weights.encoder_layout import allocate_encoder, encoder_slots, put_quantized_layers
from octavo.models.weights.gguf_file import read_gguf
from octavo.models.weights.layout import PartOfModel, Slot, allocate, put_quantized, slots
from octavo.models.weights.names import gguf_naming, hf_naming
from octavo.models.weights.quantized import Matrix, round_matrix
from octavo.models.weights.random import read_random
from octavo.models.weights.safetensors_files import read_safetensors
from octavo.models.weights.stored import StoredTensor, fill
from octavo.source import Source
from octavo_kernels.linear.blocks import BlockWeight

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    source: Source,
    *,
    dtype: DType = "auto",
    device: str = "cpu",
    quantization: str | None = None,
    max_model_len: int | None = None,
    load_format: LoadFormat = "auto",
    keep_blocks: bool | None = None,
    progress: bool = False,
    share: Share | None = None,
    group: TPGroup | None = None,
) -> Decoder:
    """Read a model's weights, or one rank's share of them, into memory, ready to run.

    Args:
        source: a Hugging Face directory or a GGUF file.
        dtype: of weights and activations; "auto" is float32 on a CPU and the checkpoint's own elsewhere.
        device: "cpu" or a CUDA device.
        quantization: as in `octavo.models.quantization`. Matrices that are stored quantised, or rounded here, stay
            quantised in memory.
        max_model_len: tokens of the longest sequence; None takes the model's own limit.
        load_format: "dummy" takes random weights.
        keep_blocks: matrices of GGUF files, except the embedding, stay quantised too instead of being dequantised to
            `dtype`; None means true on a GPU, which has kernels for them.
        progress: draw a progress bar on stderr.
        share: the part of the model to load; None means all.
        group: the ranks that hold the other shares.

    Raises:
        ModelError: the checkpoint is damaged, or of a kind that is not supported.
        ConfigError: a quantization that is not supported, or more positions than the model has.
    """
    spec, positions = check_loadable(source, quantization, max_model_len)
    share = share or share_of(spec)
    how = _How.of(source, dtype, device, quantization, keep_blocks)
    weights = allocate(share.spec, how.dtype, torch.device(device), quantized=how.is_quantized)
    places = slots(weights, share)
    parts = _read(source, spec, places, how, load_format=load_format, progress=progress)
    if how.is_quantized:
        put_quantized(weights, parts)
    if share.rank:  # the sum over ranks must include each bias once
        for layer in weights.layers:
            layer.out.bias = None
            if layer.down is not None:
                layer.down.bias = None
            if layer.experts is not None and layer.experts.down_bias is not None:
                layer.experts.down_bias.zero_()
    return Decoder(share, weights, positions, group or TPGroup())


def load_encoder(
    source: Source,
    *,
    dtype: DType = "auto",
    device: str = "cpu",
    quantization: str | None = None,
    max_model_len: int | None = None,
    load_format: LoadFormat = "auto",
    keep_blocks: bool | None = None,
    progress: bool = False,
) -> Encoder:
    """The same for an encoder, which runs on one rank.

    Raises:
        ModelError, ConfigError: as above.
    """
    spec, positions = check_loadable(source, quantization, max_model_len)
    how = _How.of(source, dtype, device, quantization, keep_blocks)
    weights = allocate_encoder(spec, how.dtype, torch.device(device), quantized=how.is_quantized)
    parts = _read(source, spec, encoder_slots(weights, spec), how, load_format=load_format, progress=progress)
    if how.is_quantized:
        put_quantized_layers(weights, parts)
    return Encoder(spec, weights, positions)


@dataclass(frozen=True, slots=True)
class _How:
    """In which form weights are kept."""

    dtype: torch.dtype
    rounding: Rounding | None
    keep_blocks: bool
    is_quantized: bool

    @classmethod
    def of(cls, source: Source, dtype: DType, device: str, quantization: str | None, keep_blocks: bool | None) -> _How:
        config, rounding = read_config(source), parse_rounding(quantization)
        if keep_blocks is None:
            keep_blocks = torch.device(device).type != "cpu"
        keep_blocks = keep_blocks and source.kind == "gguf" and rounding is None
        is_quantized = keep_blocks or rounding is not None or quantization_config(config) is not None
        return cls(torch_dtype(dtype, device, config), rounding, keep_blocks, is_quantized)


def _read(
    source: Source, spec: ModelSpec, places: list[Slot], how: _How, *, load_format: LoadFormat, progress: bool
) -> dict[PartOfModel, Matrix]:
    """Fill `places` from a checkpoint; what is on the meta device comes back as quantised matrices."""
    naming = hf_naming(spec) if source.kind == "hf" else gguf_naming(spec)
    embedding = places[0].target
    if load_format == "dummy":
        stored = read_random(places, naming, embedding.device)
    else:
        stored = read_safetensors(source.path, spec) if source.kind == "hf" else read_gguf(source.path, spec)
    parts: dict[PartOfModel, Matrix] = {}

    def take(tensor: StoredTensor, slot: Slot, rows: Tensor | None) -> None:
        blocks = _blocks(tensor, slot, rows) if how.keep_blocks or source.kind == "hf" else None
        parts[slot.layer, slot.part, slot.expert] = (
            _matrix(tensor, slot, rows, how.rounding, embedding) if blocks is None else blocks.to(embedding.device)
        )

    if how.keep_blocks and spec.generates and spec.tied_embeddings:  # the embedding is dequantised, the head keeps them
        table = next(tensor for tensor in stored if tensor.name == naming.stored_name(places[0]))
        if table.blocks is not None:
            take(table, replace(places[0], part="lm_head"), None)
    title = f"Loading {source.name}"
    fill(places, naming, stored, title=title, progress=progress, take=take)
    return parts


def _blocks(tensor: StoredTensor, slot: Slot, rows: Tensor | None) -> BlockWeight | None:
    """A matrix as GGUF blocks; None if it is stored in another way, or a rank's cut goes through a block."""
    stored = None if tensor.blocks is None else tensor.blocks(slot.rows, slot.columns)
    if stored is None:
        return None
    try:
        blocks = BlockWeight.from_blocks(stored, tensor.format)
    except ValueError as error:
        raise ModelError(f"{tensor.name}: {error}") from None
    return blocks if rows is None else blocks.take_rows(rows.argsort())


def _matrix(tensor: StoredTensor, slot: Slot, rows: Tensor | None, rounding: Rounding | None, like: Tensor) -> Matrix:
    """A matrix on `like`'s device: quantised if it is stored so, rounded if it is a layer's, else of `like`'s type."""
    if tensor.quantized is not None:
        return tensor.quantized().to(like.device)
    values = torch.cat(list(tensor.read(slot.rows, slot.columns))).to(like.device)
    values = values if rows is None else values[rows.argsort()]
    if rounding is None or slot.layer is None:
        return values.to(like.dtype)
    return round_matrix(values, rounding, tensor.name)


def torch_dtype(dtype: DType, device: str, config: Config) -> torch.dtype:
    """The type that a setting means on a device, for a model with this config."""
    if dtype != "auto":
        return _DTYPES[dtype]
    if torch.device(device).type == "cpu":
        return torch.float32
    own = config.get("dtype") or config.get("torch_dtype")
    return _DTYPES.get(str(own), torch.bfloat16)  # GGUF names no type; its blocks have less precision
