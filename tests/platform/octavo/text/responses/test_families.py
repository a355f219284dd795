"""Which template a model gets, by what its files spell."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from octavo.text.parts import TokenizerParts
from octavo.text.responses.families import NAMES, family, template_of
from octavo.text.responses.parser import ResponseParser
from octavo.text.tokenizer import Tokenizer

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parents[1] / "templates").glob("*.jinja")}


def model(source: str = "", tokens: tuple[str, ...] = (), response_template: Any = None) -> Tokenizer:
    backend = Backend(BPE())
    backend.add_tokens([AddedToken(token, special=True) for token in tokens])
    return Tokenizer(TokenizerParts(backend, frozenset(), None, {}, {"default": source}, response_template))


@pytest.mark.parametrize(
    ("source", "tokens", "name"),
    [
        ("", (), "none"),
        (TEMPLATES["hermes"], (), "hermes"),
        (TEMPLATES["qwen3"], ("<tool_call>", "<think>"), "hermes"),
        (TEMPLATES["glm"], ("<tool_call>",), "glm"),
        (TEMPLATES["mistral"], ("[TOOL_CALLS]",), "mistral_v3"),
        (TEMPLATES["llama3"], ("<|python_tag|>",), "llama3_json"),
        (TEMPLATES["deepseek"], ("<｜tool▁call▁begin｜>",), "deepseek_r1"),
        ("", ("<｜tool▁call▁begin｜>",), "deepseek_v31"),
        ("", ("[TOOL_CALLS]", "[ARGS]"), "mistral"),
        ("<tool_call>\n<function=x>\n<parameter=y>", ("<tool_call>",), "qwen3_xml"),
        ("", ("<|channel|>", "<|message|>"), "gpt_oss"),
        ("", ("<|tool_call|>", "<|start_of_role|>"), "granite"),
        ("", ("<|tool_call|>",), "phi4"),
        ("", ("<|tool_call>", "<tool_call|>"), "gemma"),
        ("", ("<|python_start|>",), "pythonic"),
        ("{{ '<think>' }}", (), "hermes"),
    ],
)
def test_the_family_of_a_model(source: str, tokens: tuple[str, ...], name: str) -> None:
    assert family(model(source, tokens)) == name


def test_what_ends_thinking_is_text_of_a_model_that_does_not_think() -> None:
    said = "Close it with </think> then."
    for source, content in ((TEMPLATES["hermes"], said), (TEMPLATES["qwen3"], said.replace("</think>", ""))):
        template = template_of(model(source))
        assert template is not None
        parser = ResponseParser(template, None, "")
        parts = [*parser.push(said), *parser.finish()]
        assert {part.kind for part in parts} == {"content"}
        assert "".join(part.text for part in parts) == content


def test_reasoning_is_told_only_where_a_model_knows_it() -> None:
    """Others may well write <think> when they are asked about it."""
    reasons = {name: template_of(model(TEMPLATES[name])) for name in ("hermes", "qwen3")}
    assert {name: template is not None and template.reasons for name, template in reasons.items()} == {
        "hermes": False,
        "qwen3": True,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_model_setting_names_one(name: str) -> None:
    assert template_of(model(TEMPLATES["qwen3"]), name) is not None
    assert template_of(model(TEMPLATES["qwen3"]), "none") is None


def test_tokens_of_the_model_are_matched_by_id() -> None:
    known = model(TEMPLATES["qwen3"], ("<tool_call>", "</tool_call>", "<other>"))
    template = template_of(known)
    assert template is not None
    assert set(template.marks) == {known.token_id("<tool_call>"), known.token_id("</tool_call>")}
    assert template_of(known) is template


def test_a_model_s_own_template_comes_first(caplog: pytest.LogCaptureFixture) -> None:
    own = {"fields": {"thinking": {"open": "<hm>", "close": "</hm>"}, "content": {}}}
    template = template_of(model(TEMPLATES["qwen3"], response_template=own))
    assert template is not None
    assert (template.reasons, list(template.fields)) == (True, ["thinking", "content"])
    wrong = {"fields": {"thinking": {"open_pattern": "(?<!x)y"}}}
    with caplog.at_level(logging.WARNING):
        template = template_of(model(TEMPLATES["qwen3"], response_template=wrong))
    assert template is not None
    assert "tool_calls" in template.fields
    assert "not used: thinking:" in caplog.text
