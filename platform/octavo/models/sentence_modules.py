"""What sentence-transformers says of a checkpoint: which modules follow the model (`modules.json`), without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ModelError
from octavo.model_files import read_optional, read_text, reading
from octavo.models.encoder_spec import DenseActivation, DenseSpec, HeadSpec
from octavo.source import Source

_SUPPORTED = ("Transformer", "Pooling", "Dense", "Normalize")
_CROSS_ENCODERS = (["Transformer"], ["Transformer", "LogitScore"])
_ACTIVATIONS: dict[str, DenseActivation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
"""torch's classes."""


_VECTOR = "sentence_embedding"
"""What sentence-transformers calls the result of pooling."""


@dataclass(frozen=True, slots=True)
class SentenceModule:
    """One module.

    Attributes:
        kind: "Transformer", "Pooling", "Dense" or "Normalize".
        folder: where its files are, relative to the checkpoint; "" for the checkpoint itself.
        config: its config.json.
    """

    kind: str
    folder: str
    config: dict[str, Any]


def sentence_modules(source: Source) -> list[SentenceModule]:
    """The modules in order; [] for a checkpoint that is not sentence-transformers', and for a cross encoder, which is a
    model with its own head, or a decoder whose logits of "yes" and "no" are read.

    Raises:
        ModelError: a damaged file, a module outside the checkpoint, or a kind of module that is not supported.
    """
    file = source.path / "modules.json"
    if source.kind != "hf" or not file.is_file():
        return []
    with reading(file):
        entries = json.loads(read_text(file))
        if [_kind(entry) for entry in entries] in _CROSS_ENCODERS:
            return []
        modules = [_module(source.path, entry) for entry in entries]
    kinds = [module.kind for module in modules]
    middle = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
        raise ModelError(
            f"{file} asks for {', '.join(kinds)}; supported are Transformer, Pooling, several Dense, Normalize"
        )
    return modules


def _kind(entry: dict[str, Any]) -> str:
    return str(entry["type"]).rpartition(".")[2]


def _module(folder: Path, entry: dict[str, Any]) -> SentenceModule:
    kind, path = _kind(entry), str(entry["path"])
    if kind not in _SUPPORTED:
        raise ModelError(f"modules.json asks for {entry['type']}, which is not supported, only {', '.join(_SUPPORTED)}")
    if kind == "Transformer" and path:
        raise ModelError(f"the model is in the folder {path!r} of this checkpoint, which is not supported: name it so")
    if path and (Path(path).name != path or path == ".."):
        raise ModelError(f"modules.json names {path!r}, which is no folder of the checkpoint")
    return SentenceModule(kind, path, read_optional(folder / path / "config.json") if path else {})


def dense_head(modules: list[SentenceModule]) -> HeadSpec | None:
    """The head that the `Dense` modules are; None without one.

    Raises:
        ModelError: an activation that is not supported, or sizes that contradict each other.
    """
    dense = [module for module in modules if module.kind == "Dense"]
    with reading("a Dense module's config"):
        return HeadSpec(tuple(_dense(module) for module in dense)) if dense else None


def _dense(module: SentenceModule) -> DenseSpec:
    name = str(module.config.get("activation_function") or "Tanh").rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ModelError(f"{module.folder} has the activation {name!r}; supported are {', '.join(_ACTIVATIONS)}")
    names = {module.config.get(key, _VECTOR) for key in ("module_input_name", "module_output_name")}
    if module.config.get("use_residual") or names != {_VECTOR}:
        raise ModelError(f"{module.folder} is no layer after pooling without a residual, which alone is supported")
    rows, columns = module.config["out_features"], module.config["in_features"]
    bias = bool(module.config.get("bias", True))
    return DenseSpec(rows, columns, f"{module.folder}/linear", bias, _ACTIVATIONS[name])
