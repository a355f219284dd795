"""Types of fields: what each takes, and the one error that anything else costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from octavo.errors import BadRequest
from octavo.request import INT64, MAX_TOKEN_ID
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.fields import Integer, Metadata, Prompt, TokenIds
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


@given(st.integers(*INT64))
def test_an_integer_may_be_written_as_a_float(value: int) -> None:
    adapter = TypeAdapter(Integer)
    assert adapter.validate_python(value) == value
    if abs(value) <= 2**53:
        assert adapter.validate_python(float(value)) == value


@pytest.mark.parametrize("value", [True, "1", 1.5, None, float("nan"), float("inf"), INT64[1] + 1, INT64[0] - 1])
def test_what_is_no_64_bit_integer_is_refused(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Integer).validate_python(value, strict=True)
    assert caught.value.error_count() == 1


@given(st.lists(st.integers(0, MAX_TOKEN_ID), max_size=9))
def test_token_ids_are_taken_as_they_are(ids: list[int]) -> None:
    assert TypeAdapter(TokenIds).validate_python(ids) == ids
    assert TypeAdapter(Prompt).validate_python([ids, [1.0]]) == [ids, [1]]


@pytest.mark.parametrize("kind", [TokenIds, Prompt, Metadata])
@pytest.mark.parametrize(
    "value", [None, {"a": None}, [None] * 100_000, [["a"]] * 100_000], ids=lambda value: str(value)[:20]
)
def test_a_wrong_value_costs_one_error_whatever_its_length(kind: Any, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("key", ["x", "-1", "1.5", " 1", "1_0", "１", "9" * 5000, ""])
def test_keys_of_logit_bias_are_token_ids(key: str) -> None:
    with pytest.raises(BadRequest, match="must be token ids"):
        CHAT.ask(parse(ChatRequest, HELLO | {"logit_bias": {key: 1}}), Limits())


# ---- tools ----


@pytest.mark.parametrize(
    ("tool", "wrong"),
    [
        ("f", r"tools\[0\] must be an object"),
        ({}, r"tools\[0\].type must be"),
        ({"type": "web_search"}, r"tools\[0\].type must be"),
        ({"type": "function"}, "function must be an object"),
        ({"type": "function", "function": {}}, "name must be"),
        ({"type": "function", "function": {"name": ""}}, "name must be"),
        ({"type": "function", "function": {"name": "a b"}}, "name must be"),
        ({"type": "function", "function": {"name": "a\n"}}, "name must be"),
        ({"type": "function", "function": {"name": "a" * 65}}, "name must be"),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, "parameters must be"),
        ({"type": "function", "function": {"name": "f", "description": 1}}, "description must be"),
        ({"type": "function", "function": {"name": "f", "strict": "yes"}}, "strict must be"),
    ],
)
def test_malformed_tools_are_refused(tool: object, wrong: str) -> None:
    with pytest.raises(BadRequest, match=wrong) as caught:
        parse(ChatRequest, HELLO | {"tools": [tool]})
    assert caught.value.param == "tools"


def test_a_tool_reaches_the_template_as_it_was_sent() -> None:
    tool = {"x": 1, "function": {"strict": None, "parameters": None, "name": "f", "more": [1]}, "type": "function"}
    body = parse(ChatRequest, HELLO | {"tools": [tool]})
    assert body.tools is not None
    assert str(body.tools[0]) == str(tool)  # the order of the keys, too
