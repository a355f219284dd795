from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.surfaces.chat.tools import Choice, choice_of, custom_tools

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


@pytest.mark.parametrize(("value", "choice"), CHOICES, ids=[str(value) for value, _ in CHOICES])
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


def test_a_custom_tool_is_chosen_by_its_name() -> None:
    assert custom_tools([*TOOLS, CUSTOM]) == {"run": {"type": "text"}}
    assert choice_of({"type": "custom", "custom": {"name": "run"}}, [CUSTOM]).callable_tools == frozenset(["run"])
