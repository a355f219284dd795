"""count_tokens says what the answer's usage says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_serve.api.body import parse
from octavo_serve.api.operation import Call
from octavo_serve.api.service import Service
from octavo_serve.surfaces.messages.counting import count
from octavo_serve.surfaces.messages.schemas import MessagesRequest, PromptBody
from octavo_serve.surfaces.messages.surface import MESSAGES

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "look_up", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": HELLO},
        {"messages": HELLO, "system": "Be brief.", "tools": [TOOL], "tool_choice": {"type": "any"}},
        {"messages": [*HELLO, {"role": "assistant", "content": "I say"}], "thinking": {"type": "disabled"}},
        {"messages": [{"role": "user", "content": "word " * 100}]},
    ],
)
def test_it_is_the_answers_input(service: Service, client: Any, body: dict[str, Any]) -> None:
    client.cached_tokens = 8
    counted = asyncio.run(count(service, Call(body=parse(PromptBody, {"model": "tiny"} | body))))
    asked = parse(MessagesRequest, {"model": "tiny", "max_tokens": 8} | body)
    usage = asyncio.run(service.answer(MESSAGES, asked))["usage"]
    assert usage["cache_read_input_tokens"] == 8
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def test_a_prompt_beyond_the_context_is_counted(service: Service, client: Any) -> None:
    text = "word, " * 3000
    body = parse(PromptBody, {"model": "tiny", "messages": [{"role": "user", "content": text}]})
    assert asyncio.run(count(service, Call(body=body)))["input_tokens"] > len(client.tokenizer.encode(text))
