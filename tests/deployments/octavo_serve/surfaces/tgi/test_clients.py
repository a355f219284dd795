"""Hugging Face's own client against the application, with nothing but its transport replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import GenerationError, OverloadedError, ValidationError

from octavo.errors import EngineDead, Overloaded
from octavo_serve.http.app import http_app

Work = Callable[[AsyncInferenceClient], Awaitable[None]]
URL = "http://test"


@pytest.fixture
def hub(service: Any, backend: Any) -> Iterator[Callable[[Work], None]]:
    transport = httpx2.ASGITransport(http_app(service, backend), raise_app_exceptions=False)
    huggingface_hub.set_async_client_factory(lambda: httpx2.AsyncClient(transport=transport))

    async def perform(work: Work, url: str) -> None:
        async with AsyncInferenceClient(model=url, provider="hf-inference") as client:
            await work(client)

    yield lambda work, url=URL: asyncio.run(perform(work, url))
    huggingface_hub.set_async_client_factory(httpx2.AsyncClient)


@pytest.mark.parametrize("path", ["", "/", "/models/tiny"])
def test_texts_and_streams(hub: Any, path: str) -> None:
    async def work(client: AsyncInferenceClient) -> None:
        assert await client.text_generation("Hi", return_full_text=False) == "Paris."
        assert await client.text_generation("Hi") == "HiParis."
        told = [text async for text in await client.text_generation("Hi", stream=True)]
        assert "".join(told) == "Paris.<|im_end|>"

    hub(work, URL + path)


def test_details(hub: Any) -> None:
    async def work(client: AsyncInferenceClient) -> None:
        asked: dict[str, Any] = {"details": True, "top_n_tokens": 2, "do_sample": True, "seed": 4}
        whole = await client.text_generation("Hi", decoder_input_details=True, **asked)
        assert whole.details is not None
        assert (whole.details.seed, whole.details.finish_reason) == (4, "eos_token")
        assert whole.details.prefill[0].text == "Hi"
        streamed = [event async for event in await client.text_generation("Hi", stream=True, **asked)]
        assert [dict(event.token) for event in streamed] == list(map(dict, whole.details.tokens))
        assert all(len(event.top_tokens or ()) == 2 for event in streamed)
        assert streamed[-1].generated_text == whole.generated_text
        assert streamed[-1].details is not None
        assert streamed[-1].details.input_length == 1

    hub(work)


def test_the_best_of_several_and_a_grammar(hub: Any, client: Any) -> None:
    client.texts = ['{"a": 1}']

    async def work(hugging: AsyncInferenceClient) -> None:
        best = await hugging.text_generation("Hi", best_of=3, do_sample=True, details=True)
        assert best.details is not None
        assert len(best.details.best_of_sequences or ()) == 2
        grammar: Any = {"type": "json", "value": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
        await hugging.text_generation("Hi", grammar=grammar)

    hub(work)
    assert client.opened[-1].params.grammar is not None


def test_errors_are_its_own(hub: Any, client: Any) -> None:
    async def work(hugging: AsyncInferenceClient) -> None:
        with pytest.raises(ValidationError, match="typical_p is not supported"):
            await hugging.text_generation("Hi", typical_p=0.5)
        with pytest.raises(ValidationError, match="typical_p is not supported"):
            [text async for text in await hugging.text_generation("Hi", typical_p=0.5, stream=True)]
        client.full = Overloaded("the queue is full", 3.0)
        with pytest.raises(OverloadedError, match="the queue is full"):
            await hugging.text_generation("Hi")
        with pytest.raises(OverloadedError, match="the queue is full"):
            [text async for text in await hugging.text_generation("Hi", stream=True)]
        client.full, client.late_error, client.fail_after = None, EngineDead("gone"), 1
        with pytest.raises(GenerationError, match="gone"):
            [text async for text in await hugging.text_generation("Hi", stream=True)]

    hub(work)


def test_what_it_asks_of_the_server(hub: Any) -> None:
    async def work(client: AsyncInferenceClient) -> None:
        info = await client.get_endpoint_info()
        assert (info["model_id"], info["max_total_tokens"]) == ("tiny", 256)
        assert await client.health_check()

    hub(work)
