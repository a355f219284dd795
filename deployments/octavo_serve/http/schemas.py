"""Answers of the routes about the server and its models."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on


class TokenizerInfo(TypedDict):
    """Answer of /tokenizer_info; special tokens are additional keys by their names, such as eos_token."""

    tokenizer_class: str
    chat_template: str | None
    model_max_length: int
    vocab_size: int
    eos_token_ids: list[int]


class ModelCard(TypedDict):
    """One entry of /v1/models; path and reason are shown only to operators."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str | None
    parent: str | None
    max_model_len: int | None
    tasks: list[Literal["generate", "embed", "classify"]] | None
    status: Literal["ready", "loading", "failed", "asleep"]
    reason: str | None
    alias_of: NotRequired[dict[str, float]]


class ModelList(TypedDict):
    """Answer of /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(TypedDict):
    """Answer of /health; shards and models are shown only to operators."""

    status: Literal["ok", "degraded", "unhealthy"]
    shards: NotRequired[dict[str, int]]
    models: NotRequired[dict[str, dict[str, str | None]]]


class Version(TypedDict):
    """Answer of /version."""

    version: str
