"""Reads the `Shape` of a model from its config or GGUF header, without its weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from octavo.errors import ModelError
from octavo.gguf_header import read_directory
from octavo.model_files import read_json, reading
from octavo.models.source_spec import read_config
from octavo.models.stored_facts import stored_facts
from octavo.planning.shape import Shape, shape_of
from octavo.source import resolve_source


def read_shape(model: str) -> Shape:
    """The shape of a model.

    Args:
        model: a directory, a .gguf file, `package:MODULE/FILE`, a config.json, or a hub id. Of a hub id only the config
            is fetched, if it is not in the local cache.

    Raises:
        ModelError: nothing usable is there, or the architecture is unknown.
    """
    with reading(repr(model)):
        path = Path(model).expanduser()
        if path.suffix == ".json":
            return shape_of(read_json(path))
        if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            return shape_of(read_json(_hub_config(model)))
        source = resolve_source(model)
        config = read_config(source)
        shape = shape_of(config, stored_facts(source, config.get("model_type")))
        return replace(shape, stored_bits=_stored_bits(source.path)) if source.kind == "gguf" else shape


def _stored_bits(file: Path) -> float:
    matrices = [entry for entry in read_directory(file).values() if len(entry.shape) == 2]
    weights = sum(rows * columns for rows, columns in (entry.shape for entry in matrices))
    return 8 * sum(entry.num_bytes for entry in matrices) / weights


def _hub_config(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
        return Path(cached if isinstance(cached, str) else hf_hub_download(name, "config.json"))
    except Exception as error:  # the hub client raises a dozen kinds; all mean "not to be had"
        raise ModelError(f"{name!r} is not a local path and its config could not be fetched: {error}") from error
