"""What chat templates of real families write for calls is read as the same calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from octavo.text.chat import render_chat
from octavo.text.default_form import in_default_form
from octavo.text.parts import TokenizerParts
from octavo.text.responses.families import DEFAULT_FORM, template_of
from octavo.text.responses.parser import ResponseParser, properties
from octavo.text.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[1] / "templates"
ENDS = {
    "hermes": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "mistral": "</s>",
}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look.", "parameters": {"properties": {}}}}
ASK = {"role": "user", "content": "Look it up."}

TEXTS = st.text("ab \"'{}\\\n\u00e9<>", max_size=12)
VALUES = st.recursive(
    TEXTS | st.integers(-9, 10**12) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.text("abc_", min_size=1, max_size=4), VALUES, max_size=3)


def tokenizer(name: str) -> Tokenizer:
    special = {"bos_token": "<s>", "eos_token": ENDS[name]}
    source = (FOLDER / f"{name}.jinja").read_text()
    return Tokenizer(TokenizerParts(Backend(BPE()), frozenset(), None, special, {"default": source}))


MODELS = {name: tokenizer(name) for name in ENDS}


def calls_in(model: Tokenizer, template: str, prompt: str, text: str, tool: dict[str, Any]) -> list[Any]:
    bound = template_of(model, template)
    assert bound is not None
    parser = ResponseParser(bound, properties([tool["function"]]), prompt)
    calls: list[Any] = []
    for part in [*parser.push(text), *parser.finish()]:
        if part.kind == "call":
            calls.append([part.text, ""])
        elif part.kind == "arguments":
            calls[-1][1] += part.text
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("name", ENDS)
@given(several=st.lists(ARGUMENTS, min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_a_template_s_calls_are_read_as_they_were(name: str, several: list[dict[str, Any]]) -> None:
    model = MODELS[name]
    calls = [
        {"type": "function", "id": f"call0000{i}", "function": {"name": "look_up", "arguments": json.dumps(arguments)}}
        for i, arguments in enumerate(several)
    ]
    prompt = render_chat(model, [ASK], tools=[TOOL])
    answered = render_chat(
        model, [ASK, {"role": "assistant", "content": None, "tool_calls": calls}], tools=[TOOL],
        add_generation_prompt=False,
    )  # fmt: skip
    assert answered.startswith(prompt)
    text = answered.removeprefix(prompt).strip().removesuffix(ENDS[name])
    assert calls_in(model, "auto", prompt, text, TOOL) == [("look_up", arguments) for arguments in several]


@given(several=st.lists(ARGUMENTS, min_size=1, max_size=3))
@settings(max_examples=30)
def test_so_is_the_default_form(several: list[dict[str, Any]]) -> None:
    calls = [{"function": {"name": "look_up", "arguments": json.dumps(arguments)}} for arguments in several]
    (_, message) = in_default_form([{"role": "assistant", "content": "So.", "tool_calls": calls}], [TOOL])
    found = calls_in(MODELS["hermes"], DEFAULT_FORM, "", message["content"], TOOL)
    assert found == [("look_up", arguments) for arguments in several]
