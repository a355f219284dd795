from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.chats import Message
from octavo_serve.surfaces.chat.tools import Choice, as_function_tool, as_functions, choice_of, custom_tools

TOOLS: list[Any] = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
A = {"type": "function", "function": {"name": "a"}}

CHOICES: list[tuple[Any, Choice]] = [
    (None, Choice()),
    ("auto", Choice()),
    ("none", Choice(none=True)),
    ("required", Choice(must_call=True)),
    (A, Choice(named=True, must_call=True, callable_tools=frozenset("a"))),
    (
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [A, A]}},
        Choice(must_call=True, callable_tools=frozenset("a")),
    ),
    ({"type": "allowed_tools", "mode": "auto", "tools": TOOLS}, Choice(callable_tools=frozenset("ab"))),
]


@pytest.mark.parametrize(("value", "choice"), CHOICES, ids=str)
def test_a_choice_says_what_may_and_must_be_called(value: Any, choice: Choice) -> None:
    assert choice_of(value, TOOLS) == choice


REFUSED: list[Any] = [
    "any", {"type": "function"}, {"type": "function", "function": {"name": "c"}}, {"type": "allowed_tools"},
    {"type": "allowed_tools", "allowed_tools": {"mode": "any", "tools": [A]}},
    {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [3]}},
]  # fmt: skip


@pytest.mark.parametrize("value", REFUSED, ids=str)
def test_what_is_malformed_or_not_there_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        choice_of(value, TOOLS)
    assert caught.value.param == "tool_choice"
    with pytest.raises(BadRequest, match="needs tools"):
        choice_of("required", [])


CUSTOM: Any = {"type": "custom", "custom": {"name": "run", "description": "Runs.", "format": {"type": "text"}}}


def test_a_custom_tool_is_a_function_for_the_model() -> None:
    assert custom_tools([*TOOLS, CUSTOM]) == {"run": {"type": "text"}}
    assert as_function_tool(CUSTOM)["function"]["name"] == "run"
    assert as_function_tool(TOOLS[0]) is TOOLS[0]
    assert choice_of({"type": "custom", "custom": {"name": "run"}}, [CUSTOM]).callable_tools == frozenset(["run"])


def test_what_was_called_before_goes_back_as_calls_of_functions() -> None:
    called = {"id": "c", "type": "custom", "custom": {"name": "run", "input": 'a "b"'}}
    message = Message(role="assistant", tool_calls=[called, {"id": "d"}, 3])  # type: ignore[call-arg]
    assert (as_functions(message).model_extra or {})["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "run", "arguments": '{"input": "a \\"b\\""}'}},
        {"id": "d"},
        3,
    ]
    plain = Message(role="user", content="Hi")
    assert as_functions(plain) is plain
