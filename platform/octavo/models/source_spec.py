"""Reads the `ModelSpec` of a `Source` without its weights and without torch."""

from __future__ import annotations

import math
from dataclasses import replace

from octavo.errors import ConfigError, ModelError
from octavo.gguf_header import read_directory
from octavo.model_files import read_json, read_optional, reading
from octavo.models.families.reading import spec_from_config
from octavo.models.families.record import Config
from octavo.models.families.settings import quantization_config, token_ids
from octavo.models.gguf_config import config_from_gguf
from octavo.models.parallel import Share, TPGroup, share_of, split_heads
from octavo.models.quantization import check_setting, check_stored, parse_rounding, unpackable
from octavo.models.sentence_modules import dense_head, sentence_modules
from octavo.models.spec import ModelSpec
from octavo.models.stored_facts import Stored, stored_facts
from octavo.source import Source


def read_spec(source: Source) -> ModelSpec:
    """The spec of the model at `source`.

    Raises:
        ModelError: a damaged config, or a model or setting that is not supported.
    """
    if source.runner == "transformers":
        return _foreign_spec(source)
    with reading(source.path):
        config = read_config(source)
        modules = sentence_modules(source)
        if modules:  # they follow the model itself, whatever head it was trained with
            config["architectures"] = []
        stored = stored_facts(source, config.get("model_type"))
        spec = _without_output(spec_from_config(config, stored), config, stored, is_embedder=bool(modules))
        return replace(spec, head=spec.head or dense_head(modules))


def _foreign_spec(source: Source) -> ModelSpec:
    try:
        from octavo.models.foreign import read_foreign_spec  # transformers takes seconds to import
    except ImportError as error:
        raise ModelError(
            f"runner 'transformers' needs a package: pip install 'octavo[transformers]' ({error})"
        ) from error
    return read_foreign_spec(source)


def _without_output(spec: ModelSpec, config: Config, stored: Stored | None, *, is_embedder: bool) -> ModelSpec:
    """The same, generating nothing, for a decoder that was stored without an output matrix because it is to embed."""
    bare = is_embedder or any(str(name).endswith("Model") for name in config.get("architectures") or [])
    if spec.tied_embeddings or stored is None or not bare:
        return spec
    has_output = any(name.startswith(f"{stored.parts['lm_head']}.") for name in stored.entries)
    return spec if has_output else replace(spec, tied_embeddings=True, generates=False)


def read_share(source: Source, group: TPGroup) -> Share:
    """This rank's share of the model at `source`.

    Raises:
        ModelError: a damaged config, or a model or setting that is not supported.
        ConfigError: so many ranks cannot share it; the message says why and how many can.
    """
    if group.size > 1 and source.runner == "transformers":
        raise ConfigError(f"tensor_parallel_size must be 1 for {source.name!r}: runner 'transformers' cuts no model")
    if group.size > 1 and _stored(source) not in (None, "gguf"):
        raise ConfigError(f"tensor_parallel_size must be 1 for {source.name!r}: {_stored(source)} matrices are not cut")
    if group.size > 1 and quantization_config(read_config(source)) is not None:
        raise ConfigError("quantised checkpoints run on one rank: set tensor_parallel_size to 1, or take a GGUF file")
    blocks = _block_values(source) if group.size > 1 else []
    return share_of(read_spec(source), group.rank, group.size, math.lcm(*blocks))


def cut_through_blocks(source: Source, share: Share) -> str | None:
    """Where a cut between ranks goes through quantised blocks, which then have to be dequantised; None if no cut does.

    The MLP is always cut between blocks. Attention is cut between heads, and a head may end inside a block.
    """
    width = share.whole.value_size // share.whole.num_heads
    edges = [heads.stop * width for heads, _ in split_heads(share.whole, share.size)]
    for values in _block_values(source) if share.size > 1 else []:
        if through := [edge for edge in edges if edge % values]:
            return f"{share.size} ranks cut its attention output at column {through[0]}, inside a block of {values}"
    return None


def _block_values(source: Source) -> list[int]:
    """For each matrix of the layers, columns of one quantised block; empty if the source has no blocks."""
    if source.kind != "gguf":
        return []
    entries = read_directory(source.path)
    return [entry.block_values for name, entry in entries.items() if name.startswith("blk.") and len(entry.shape) > 1]


def check_loadable(source: Source, quantization: str | None, max_model_len: int | None) -> tuple[ModelSpec, int]:
    """Check a model and its settings; returns its spec and its number of positions.

    Raises:
        ModelError: a damaged config, or a model or setting that is not supported.
        ConfigError: a quantization that is not supported, or more positions than the model has.
    """
    spec = read_spec(source)
    if source.runner == "transformers" and quantization is not None:
        raise ConfigError("runner 'transformers' keeps the checkpoint's weights: leave quantization out")
    check_setting(quantization, _stored(source), source.name)
    positions = max_model_len or spec.max_position_embeddings
    if positions > spec.max_position_embeddings:
        raise ConfigError(f"max_model_len is {positions}, but the model holds at most {spec.max_position_embeddings}")
    return spec, positions


def _stored(source: Source) -> str | None:
    if source.kind == "gguf":
        return "gguf"
    config = _checked(source)
    return None if config is None else str(config["quant_method"])


def _checked(source: Source) -> Config | None:
    """A directory's `quantization_config`, checked; None if its matrices are not quantised."""
    if config := quantization_config(read_config(source)):
        check_stored(config)
    return config or None


def why_not_packed(source: Source, quantization: str | None, spec: ModelSpec) -> str | None:
    """Why the native runner cannot run this model (or the share `spec` of it) with this quantization; None if it can.

    Raises:
        ModelError: a damaged config.
    """
    stored = None if source.kind == "gguf" else _checked(source)
    columns = [spec.hidden_size, spec.value_size, spec.intermediate_size, spec.shared_expert_size, spec.dense_size]
    columns += [] if spec.recurrence is None else [spec.recurrence.output[1]]
    return unpackable(parse_rounding(quantization), stored, columns)


def read_config(source: Source) -> Config:
    """The model's config; of a GGUF file, its metadata as a Hugging Face config."""
    if source.kind == "gguf":
        return config_from_gguf(source.path)
    config = read_json(source.path / "config.json")
    # Chat models list their end-of-turn tokens here, beside the end token of the base model
    generation = read_optional(source.path / "generation_config.json")
    if ends := token_ids(config.get("eos_token_id")) + token_ids(generation.get("eos_token_id")):
        config["eos_token_id"] = list(dict.fromkeys(ends))
    return config
