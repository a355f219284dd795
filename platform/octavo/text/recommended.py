"""Sampling parameters that a model's makers recommend: generation_config.json, or a GGUF file's `general.sampling`.

The same keys as vLLM's `--generation-config auto` and llama.cpp's server read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.errors import BadRequest, ModelError
from octavo.gguf_header import read_metadata
from octavo.request import SamplingParams
from octavo.source import Source

_GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
NAMES = tuple(_GGUF_KEYS)
"""Parameters that a model may recommend."""


def recommended_sampling(source: Source) -> dict[str, float]:
    """Names of `SamplingParams` -> recommended values; empty if the model's files recommend none.

    Raises:
        ModelError: a value is out of its range, or the file cannot be read.
    """
    found = _of_gguf(source) if source.kind == "gguf" else _of_directory(source)
    values = {name: found[name] for name in NAMES if found.get(name) is not None}
    try:
        params = SamplingParams(**values)
    except BadRequest as error:
        raise ModelError(f"{source.name}: its recommended sampling is wrong: {error}") from error
    names = [*values, "temperature"] if values.get("top_p") == 0 else values  # which is a temperature of 0
    return {name: getattr(params, name) for name in names}


def _of_gguf(source: Source) -> dict[str, Any]:
    metadata = read_metadata(source.path)
    return {name: _rounded(metadata.get(key)) for name, key in _GGUF_KEYS.items()}


def _rounded(value: Any) -> Any:
    """GGUF stores 0.95 as a float32, which reads as 0.949999988079071."""
    return round(value, 6) if isinstance(value, float) else value


def _of_directory(source: Source) -> Mapping[str, Any]:
    file = source.path / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} must hold a JSON object")
    return found
