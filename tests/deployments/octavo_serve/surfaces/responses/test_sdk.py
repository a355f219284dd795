"""OpenAI's own client against the application: answers, streams, formats, tools and stored responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from octavo_serve.http.app import http_app

Work = Callable[[openai.AsyncOpenAI], Awaitable[None]]


class Capital(BaseModel):
    country: str
    capital: str


@pytest.fixture
def sdk(api: Any) -> Callable[[Work], None]:
    async def perform(work: Work) -> None:
        transport = httpx.ASGITransport(http_app(api.service, api.backend))
        async with httpx.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="x", http_client=http, max_retries=0)
            await work(client)

    return lambda work: asyncio.run(perform(work))


def test_streams_and_turns(sdk: Any, client: Any) -> None:
    async def work(ai: openai.AsyncOpenAI) -> None:
        async with ai.responses.stream(model="tiny", input="Hello") as stream:
            async for _ in stream:
                pass
            first = await stream.get_final_response()
        assert first.output_text == "Paris."
        second = await ai.responses.create(input="Again", previous_response_id=first.id)
        assert (await ai.responses.retrieve(second.id)) == second
        listed = [item async for item in await ai.responses.input_items.list(second.id, limit=1, order="asc")]
        assert [item.type for item in listed] == ["message"] * 3
        await ai.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await ai.responses.retrieve(second.id)
        assert (await ai.responses.input_tokens.count(model="tiny", input="Hello")).input_tokens > 0

    sdk(work)


def test_a_type_is_parsed(sdk: Any, client: Any) -> None:
    client.texts = ['{"country": "France", "capital": "Paris"}']

    async def work(ai: openai.AsyncOpenAI) -> None:
        found = await ai.responses.parse(model="tiny", input="Where?", text_format=Capital)
        assert found.output_parsed == Capital(country="France", capital="Paris")
        async with ai.responses.stream(model="tiny", input="Where?", text_format=Capital) as stream:
            assert (await stream.get_final_response()).output_parsed == found.output_parsed

    sdk(work)
    assert client.opened[0].params.grammar is not None


def test_a_tool_is_called_and_answered(sdk: Any, client: Any) -> None:
    client.texts = ['<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>']

    async def work(ai: openai.AsyncOpenAI) -> None:
        tool: Any = {"type": "function", "name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}
        asked: list[Any] = [{"role": "user", "content": "Where?"}]
        async with ai.responses.stream(model="tiny", input=asked, tools=[tool], tool_choice="required") as stream:
            first = await stream.get_final_response()
        (call,) = first.output
        assert call.type == "function_call"
        assert json.loads(call.arguments) == {"a": 1}
        client.texts = ["Paris."]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "yes"}
        told = await ai.responses.create(input=[*asked, call, result], tools=[tool], store=False)
        assert told.output_text == "Paris."

    sdk(work)


def test_errors_are_its_own(sdk: Any) -> None:
    async def work(ai: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="nothing is dropped here"):
            await ai.responses.create(input="Hello", truncation="auto")
        with pytest.raises(openai.NotFoundError):
            await ai.responses.create(model="none", input="Hello")

    sdk(work)
