"""Chats: how the prompt ends, what is refused while the model loads, where a template is rendered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.body import parse
from octavo_serve.api.chats import FEW, Chat, Message, as_function_tool, as_functions, render
from octavo_serve.api.model import Defaults
from octavo_serve.api.service import Service
from octavo_serve.api.threads import Threads
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def chat_of(*contents: str, **settings: Any) -> Chat:
    return Chat(messages=[Message(role="user", content=content) for content in contents], **settings)


@pytest.mark.parametrize(
    ("settings", "answers", "goes_on"),
    [
        ({}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
    ],
)
def test_a_chat_is_answered_unless_its_last_message_goes_on(
    settings: dict[str, Any], answers: bool, goes_on: bool
) -> None:
    ending = chat_of("Hello", **settings).ending
    assert ending == {"add_generation_prompt": answers, "continue_final_message": goes_on}


def test_a_message_has_the_fields_that_were_sent_and_no_others() -> None:
    sent = {"role": "tool", "content": "4", "tool_call_id": "c"}
    assert Chat(messages=[Message(**sent)]).unpacked() == [sent]  # type: ignore[arg-type]
    assert Chat(messages=[Message(role="assistant", tool_calls=[])]).unpacked() == [  # type: ignore[call-arg]
        {"role": "assistant", "tool_calls": []}
    ]


def test_a_long_chat_is_looked_at_when_it_is_rendered(tokenizer: Tokenizer) -> None:
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(BadRequest):
        chat_of(*["a"] * FEW, **both).check()
    long = chat_of(*["a"] * (FEW + 1), **both)
    long.check()
    with pytest.raises(BadRequest):
        asyncio.run(render(long, tokenizer, Threads()))


@pytest.mark.parametrize("count", [1, 2, FEW + 1])
def test_a_chat_reads_alike_wherever_it_is_rendered(tokenizer: Tokenizer, count: int) -> None:
    asyncio.run(render(chat_of("Hello"), tokenizer, Threads()))  # compiles the template, always in a thread
    ran: list[bool] = []

    class Counted(Threads):
        async def run(self, work: Any, *arguments: Any, **named: Any) -> Any:
            ran.append(True)
            return await super().run(work, *arguments, **named)

    text = asyncio.run(render(chat_of(*["Hello"] * count), tokenizer, Counted()))
    assert text.count("<|im_start|>user\nHello<|im_end|>\n") == count
    assert text.endswith("<|im_start|>assistant\n")
    assert bool(ran) == (count > FEW)


def answered(service: Service, **extra: Any) -> Any:
    return asyncio.run(service.answer(CHAT, parse(ChatRequest, HELLO | extra)))


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning": {"effort": "high"}}, "reasoning_effort"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
    ],
)
def test_a_model_without_reasoning_says_so(service: Service, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest, match="this model") as caught:
        answered(service, **asked)
    assert caught.value.param == param
    for harmless in ({"reasoning_effort": "medium"}, {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}):
        assert answered(service, **harmless)["choices"]


def test_a_model_that_thinks_by_its_setting_takes_efforts_and_budgets(service: Service) -> None:
    """What its files spell does not tell, and it thinks in a chat with tools, too."""
    service.models.entries["tiny"].update(defaults=Defaults(response_template="hermes"))
    tools = [{"type": "function", "function": {"name": "f"}}]
    for asked in ({"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 3}}):
        for more in ({}, {"tools": tools}):
            assert answered(service, **asked, **more)["choices"]


def test_a_custom_tool_is_a_function_for_the_model() -> None:
    function: Any = {"type": "function", "function": {"name": "look_up"}}
    custom: Any = {"type": "custom", "custom": {"name": "run", "description": "Runs.", "format": {"type": "text"}}}
    assert as_function_tool(custom)["function"]["name"] == "run"
    assert as_function_tool(function) is function


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
