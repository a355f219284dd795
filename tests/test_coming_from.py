"""The page for who comes from another server: every name that it gives for something of ours exists."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from octavo.config import EngineConfig
from octavo_serve.command.cli import app
from octavo_serve.config.settings import AppSettings, ModelSettings
from octavo_serve.http.describe import described
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.openai.refusals import refusal
from octavo_serve.surfaces.openai.schemas import NOT_SUPPORTED
from octavo_serve.surfaces.served import OPERATIONS, SURFACES
from octavo_serve.surfaces.tokens.schemas import TokenizeRequest

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text()
ROWS = [re.split(r"(?<!\\)\|", line)[1:3] for line in PAGE.splitlines() if re.match(r"\| [^|]*`", line)]
NAMED = sorted({name for _, ours in ROWS for name in re.findall(r"`([^`]+)`", ours)})
OTHERS = {".gguf"}  # the end of a file's name


def settings(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Names of settings, those in others with a dot."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        for inner in _members(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from settings(inner, "" if inner is ModelSettings else f"{prefix}{name}.")


def _members(annotation: Any) -> list[Any]:
    return [annotation] if not get_args(annotation) else [m for arg in get_args(annotation) for m in _members(arg)]


def fields() -> set[str]:
    """Fields of requests that are done, not refused."""
    kinds = ChatRequest, CompletionRequest, TokenizeRequest
    every = [item for kind in kinds for item in kind.model_fields.items()]
    return {name for name, field in every if field.description != NOT_SUPPORTED}


KNOWN = {
    *settings(AppSettings),
    *(f"engine.{field.name}" for field in dataclasses.fields(EngineConfig)),
    *fields(),
    *(one.where for one in described(SURFACES, OPERATIONS)),
    *(f"octavo {command.name or command.callback.__name__}" for command in app.registered_commands if command.callback),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_is_there(name: str) -> None:
    if ":" in name:
        module, _, attribute = name.partition(":")
        assert hasattr(importlib.import_module(module), attribute)
    else:
        assert name in KNOWN | OTHERS


REFUSED = ("truncate_prompt_tokens", "use_beam_search", "logits_processors", "kv_transfer_params", "vllm_xargs")


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_page_calls_refused_is(name: str) -> None:
    assert any(f"`{name}`" in theirs and ours.strip() == "refused" for theirs, ours in ROWS)
    assert refusal(ChatRequest(messages=[{"role": "user", "content": "Hi"}], **{name: 1})) is not None


def test_the_page_was_read() -> None:
    assert len(NAMED) > 60
    assert len(ROWS) > 60
