"""The page for who comes from another server: every name that it gives for something of ours exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo_serve.command.cli import app
from octavo_serve.command.flags import flags, read_words
from octavo_serve.config.reference import settings
from octavo_serve.http.describe import described
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.openai.refusals import refusal
from octavo_serve.surfaces.openai.schemas import NOT_SUPPORTED
from octavo_serve.surfaces.served import OPERATIONS, SURFACES
from octavo_serve.surfaces.tokens.schemas import TokenizeRequest

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text()


def rows(text: str) -> list[list[str]]:
    """Theirs and ours of each row that names something."""
    return [line.split("|")[1:3] for line in text.splitlines() if re.match(r"\| [^|]*`", line)]


ROWS = rows(PAGE)
NAMED = sorted({name for _, ours in ROWS for name in re.findall(r"`([^`]+)`", ours)})
OTHERS = {".gguf"}  # the end of a file's name


def fields() -> set[str]:
    """Fields of requests that are done, not refused."""
    kinds = ChatRequest, CompletionRequest, TokenizeRequest
    every = [item for kind in kinds for item in kind.model_fields.items()]
    return {name for name, field in every if field.description != NOT_SUPPORTED}


KNOWN = {
    *(".".join(setting.path).removeprefix("models.") for setting in settings()),
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


REFUSED = ("truncate_prompt_tokens", "logits_processors", "kv_transfer_params", "vllm_xargs")


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_page_calls_refused_is(name: str) -> None:
    assert any(f"`{name}`" in theirs and ours.strip() == "refused" for theirs, ours in ROWS)
    assert refusal(ChatRequest(messages=[{"role": "user", "content": "Hi"}], **{name: 1})) is not None


OF_VLLM = rows(PAGE[PAGE.index("## vLLM") : PAGE.index("## TGI")])
FLAGS = [(flag, "`" in ours) for theirs, ours in OF_VLLM for flag in re.findall(r"`--([a-z-]+)", theirs)]


@pytest.mark.parametrize(("flag", "done"), FLAGS)
def test_a_flag_of_vllm_is_taken_or_refused_in_words(flag: str, done: bool) -> None:
    if flag.replace("-", "_") in flags():
        assert done
    else:
        with pytest.raises(ConfigError, match=f"there is no --{flag}: "):
            read_words([f"--{flag}", "1"])


def test_the_page_was_read() -> None:
    assert len(NAMED) > 60
    assert len(ROWS) > 60
    assert len(FLAGS) > 20
