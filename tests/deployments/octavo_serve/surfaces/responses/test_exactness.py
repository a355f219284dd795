"""A next turn finds the last one in the cache, token by token, whatever the model wrote: with a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.request import Placement, Request, SequenceUpdate
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer
from octavo_serve.api.bounds import Limits
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.wire.messages import ModelInfo

BLOCK = 8


class InProcess:
    """A `ModelClient` of one engine."""

    def __init__(self, folder: Path) -> None:
        config = EngineConfig(dtype="float32", kv_cache_bytes=2**22, block_size=BLOCK, threads=1)
        self.engine = AsyncEngine.load(str(folder), config)
        self.opened: list[Request] = []
        tokenizer = load_tokenizer(resolve_source(str(folder)))
        entry = ModelEntry("tiny", 1, self, tokenizer=tokenizer, info=asyncio.run(self.describe()), shards=1)
        self.service = Service(Registry([entry]), Limits(), Telemetry())

    async def describe(self) -> ModelInfo:
        return ModelInfo("tiny", max_model_len=512, vocab_size=259, block_size=BLOCK)

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int) -> Iterator[None]:
        yield

    def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        self.opened.append(request)
        return self.engine.generate(request)

    def placement(self, request_id: str) -> Placement | None:
        return None

    async def abort(self, request_id: str, index: int) -> None:
        raise AssertionError("no request is ended early")


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> Iterator[InProcess]:
    found = InProcess(tiny_model("qwen3"))
    yield found
    found.engine.close()


def test_a_turn_is_found_in_the_cache(model: InProcess, api: Any) -> None:
    """The model writes random bytes, which are no text: as a text they would be other tokens."""
    api.service = model.service
    sampling = {"temperature": 1.0, "seed": 1}
    first = api.create("Hello, what is this?", max_output_tokens=200, **sampling)
    told = first["output"][0]["content"][0]["text"]
    tokenizer = model.service.models.find(None).tokenizer
    assert len(tokenizer.encode(told)) != first["usage"]["output_tokens"]
    second = api.create("And that?", max_output_tokens=8, previous_response_id=first["id"], **sampling)
    whole = first["usage"]["total_tokens"]
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= 0.95 * whole
    prompts = [request.prompt_token_ids for request in model.opened]
    assert prompts[1][: len(prompts[0])] == prompts[0]
