"""What a checkpoint says of its vectors and classes, as a `PoolingInfo`, without torch.

sentence-transformers' files come first (`modules.json`, `1_Pooling`, `config_sentence_transformers.json`,
`sentence_bert_config.json`), then the config of a classifier, then GGUF's `pooling_type`. Where a checkpoint says
nothing, an encoder's states are pooled by their mean, and a decoder's last one is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from octavo.errors import ModelError
from octavo.gguf_header import read_metadata
from octavo.model_files import read_json, read_optional, reading
from octavo.models.encoder_families import is_classifier
from octavo.models.sentence_modules import SentenceModule, sentence_modules
from octavo.models.source_spec import read_config
from octavo.models.spec import ModelSpec
from octavo.pooling import Method, PoolingInfo
from octavo.source import Source

Activation = Literal["sigmoid", "softmax", "identity"]

_SENTENCES = "config_sentence_transformers.json"
_OLDEST = "sbert_ce_default_activation_function"
_GGUF_METHODS: dict[int, Method] = {1: "mean", 2: "cls", 3: "last", 4: "cls"}
"""By `pooling_type`; 4 is a ranker."""

_MODES: dict[str, Method] = {
    "cls": "cls", "mean": "mean", "lasttoken": "last",
    "cls_token": "cls", "mean_tokens": "mean",
}  # fmt: skip
"""By the names that sentence-transformers gives them in `pooling_mode`, and in older flags."""


def read_pooling(source: Source, spec: ModelSpec) -> PoolingInfo:
    """What the checkpoint at `source`, whose spec is `spec`, says of its vectors.

    Raises:
        ModelError: a damaged file, or a way of pooling that is not supported; the message names it.
    """
    with reading(f"what {source.name} says of its vectors"):
        config, modules = read_config(source), sentence_modules(source)
        if modules:
            return _of_sentences(source, spec, config, modules)
        if is_classifier(config):
            return _of_classes(source, spec, config)
        return _plain(source, spec, config)


def _of_sentences(
    source: Source, spec: ModelSpec, config: Mapping[str, Any], modules: list[SentenceModule]
) -> PoolingInfo:
    _check_texts(source)
    settings = read_optional(source.path / _SENTENCES)
    prompts = {str(name): str(text) for name, text in (settings.get("prompts") or {}).items()}
    default = settings.get("default_prompt_name")
    return PoolingInfo(
        method=_method(modules[1]),
        dimensions=spec.hidden_size if spec.head is None else spec.head.size,
        normalise=modules[-1].kind == "Normalize",
        matryoshka=_matryoshka(config),
        max_tokens=_max_tokens(source, spec),
        prompts=prompts,
        default_prompt=default if default in prompts else None,
    )


def _check_texts(source: Source) -> None:
    """Raise `ModelError` for what would be done to a text before the tokenizer reads it: sentence-transformers 6 puts
    it into the chat template where a checkpoint says "message", and older ones make it lower case."""
    settings = read_optional(source.path / "sentence_bert_config.json")
    if "message" in (settings.get("modality_config") or {}):
        raise ModelError(
            "sentence_bert_config.json asks for texts as messages of a chat, which is not supported: take 'message' "
            "out of its modality_config to embed texts as they are"
        )
    if not settings.get("do_lower_case"):
        return
    normalizer = json.dumps(read_json(source.path / "tokenizer.json").get("normalizer"))
    if '"Lowercase"' not in normalizer and '"lowercase": true' not in normalizer:
        raise ModelError("sentence_bert_config.json asks for do_lower_case, which is not supported: clients can do it")


def _method(pooling: SentenceModule) -> Method:
    config = pooling.config
    prefix = "pooling_mode_"
    flags = [key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value is True]
    own = config.get("pooling_mode", "mean")
    modes = flags or (own if isinstance(own, list) else [own])
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ModelError(f"{pooling.folder} pools by {modes}; supported is one of cls, mean and lasttoken")
    if config.get("include_prompt") is False:
        raise ModelError(f"{pooling.folder} leaves prompts out of the mean (include_prompt), which is not supported")
    return _MODES[modes[0]]


def _of_classes(source: Source, spec: ModelSpec, config: Mapping[str, Any]) -> PoolingInfo:
    assert spec.head is not None
    names = sorted((config.get("id2label") or {}).items(), key=lambda item: int(item[0]))
    labels = tuple(str(label) for _, label in names)
    if len(labels) != spec.head.size:  # transformers' names where there are none
        labels = tuple(f"LABEL_{i}" for i in range(spec.head.size))
    method: Method = config.get("classifier_pooling", "cls") if spec.encoder is not None else "last"
    return PoolingInfo(
        tasks=("classify",),
        method=method,
        dimensions=spec.head.size,
        normalise=False,
        max_tokens=_max_tokens(source, spec),
        labels=labels,
        activation=_activation(source, config, spec.head.size),
    )


def _activation(source: Source, config: Mapping[str, Any], classes: int) -> Activation:
    """As sentence-transformers' cross encoders say, else by the problem's type, else by the number of classes."""
    newest = read_optional(source.path / _SENTENCES) if source.kind == "hf" else {}
    places = newest, config.get("sentence_transformers") or {}, {"activation_fn": config.get(_OLDEST)}
    own = next((place["activation_fn"] for place in places if place.get("activation_fn")), "")
    named = str(own).rpartition(".")[2].lower()
    if named:
        if named not in ("sigmoid", "softmax", "identity"):
            raise ModelError(
                f"the activation {named!r} of classes is not supported, only Sigmoid, Softmax and Identity"
            )
        return named  # type: ignore[return-value]
    usual: Activation = "sigmoid" if classes == 1 else "softmax"
    problems: dict[object, Activation] = {
        "regression": "identity",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "softmax",
    }
    return problems.get(config.get("problem_type"), usual)


def _plain(source: Source, spec: ModelSpec, config: Mapping[str, Any]) -> PoolingInfo:
    method: Method = "last" if spec.encoder is None else "mean"
    if source.kind == "gguf":
        meta = read_metadata(source.path)
        method = _GGUF_METHODS.get(meta.get(f"{meta['general.architecture']}.pooling_type", 0), method)
    return PoolingInfo(
        method=method,
        dimensions=spec.hidden_size,
        matryoshka=_matryoshka(config),
        max_tokens=_max_tokens(source, spec),
    )


def _matryoshka(config: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(sorted(int(size) for size in config.get("matryoshka_dimensions") or ()))


def _max_tokens(source: Source, spec: ModelSpec) -> int | None:
    """Tokens of a text beyond which its makers cut it, where they say so."""
    if source.kind == "gguf":
        return None
    own = read_optional(source.path / "sentence_bert_config.json").get("max_seq_length")
    if own is None and spec.encoder is not None:  # of a decoder it is that of chats
        own = read_optional(source.path / "tokenizer_config.json").get("model_max_length")
    return min(int(own), spec.max_position_embeddings) if own is not None else None
