"""What a body asks for."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.chats import Chat
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.messages.asking import ask
from octavo_serve.surfaces.messages.schemas import MessagesRequest

TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in ("look_up", "walk")]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def asked(**more: Any) -> Asked:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]} | more
    return ask(parse(MessagesRequest, body), Limits())


def chat(**more: Any) -> Chat:
    content = asked(**more).content
    assert isinstance(content, Chat)
    return content


def test_sampling_and_session() -> None:
    found = asked(temperature=0.5, top_p=0.9, top_k=3, stop_sequences=["a"], metadata={"user_id": "alice"})
    assert (found.params.temperature, found.params.top_p, found.params.top_k, found.params.max_tokens) == (
        0.5,
        0.9,
        3,
        9,
    )
    assert (found.given, found.session) == ({"temperature": 0.5, "top_p": 0.9, "top_k": 3, "stop": ["a"]}, "alice")
    assert asked().max_tokens is None  # the context may end first
    with pytest.raises(BadRequest, match="temperature"):
        asked(temperature=-1)


@pytest.mark.parametrize(
    ("choice", "must", "callable_tools", "shown"),
    [
        (None, False, None, 2),
        ({"type": "auto"}, False, None, 2),
        ({"type": "any"}, True, None, 2),
        ({"type": "tool", "name": "walk"}, True, frozenset({"walk"}), 2),
        ({"type": "none"}, False, None, 0),
    ],
)
def test_tool_choice(choice: Any, must: bool, callable_tools: Any, shown: int) -> None:
    found = chat(tools=TOOLS, tool_choice=choice)
    assert (found.must_call, found.callable_tools, len(found.tools or ())) == (must, callable_tools, shown)
    assert not found.one_call
    if choice and choice["type"] != "none":
        assert chat(tools=TOOLS, tool_choice=choice | {"disable_parallel_tool_use": True}).one_call


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "walk"}, {"type": "tool"}])
def test_a_tool_that_is_not_there_cannot_be_forced(choice: Any) -> None:
    with pytest.raises(BadRequest, match="tool_choice"):
        chat(tool_choice=choice)


@pytest.mark.parametrize(
    ("thinking", "variables", "budget"),
    [
        (None, {}, None),
        ({"type": "enabled", "budget_tokens": 1024}, {"thinking": True, "enable_thinking": True}, 1024),
        ({"type": "adaptive", "display": "omitted"}, {"thinking": True, "enable_thinking": True}, None),
        ({"type": "disabled"}, {"thinking": False, "enable_thinking": False}, None),
    ],
)
def test_thinking(thinking: Any, variables: dict[str, Any], budget: int | None) -> None:
    found = chat(thinking=thinking)
    assert (found.variables, found.thinking_budget, found.reasoning) == (variables, budget, {})


def test_effort_has_the_names_of_chat_templates() -> None:
    efforts = {effort: chat(output_config={"effort": effort}).variables for effort in ("low", "high", "max")}
    assert efforts == {
        "low": {"reasoning_effort": "low"},
        "high": {"reasoning_effort": "high"},
        "max": {"reasoning_effort": "high"},
    }


def test_a_format_is_a_schema() -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    for sent, param in (({"output_config": {"format": form}}, "output_config.format"), ({"output_format": form},) * 2):
        found = asked(**sent).params.structured_outputs
        assert found is not None
        assert found.json == SCHEMA
        assert found.param.startswith(param if isinstance(param, str) else "output_format")
    with pytest.raises(BadRequest, match="not both"):
        asked(output_format=form, output_config={"format": form})
