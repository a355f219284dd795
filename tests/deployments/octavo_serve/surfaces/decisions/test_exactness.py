"""A question's probabilities are the same bits at any load, in any company, cached or not: with a real engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.request import Placement, Request, SamplingParams, SequenceUpdate
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.operation import Call
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.surfaces.decisions.operations import decisions
from octavo_serve.surfaces.decisions.schemas import DecisionRequest
from octavo_serve.wire.messages import ModelInfo

INPUT = "I was charged twice, and nobody answers. Help!"
QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "instructions": "Urgent?"},
    {"type": "predicate", "instructions": "Polite?"},
    {"type": "choice", "instructions": "What?", "choices": [{"value": "bill"}, {"value": True}, {"value": False}]},
    {"type": "score", "instructions": "Mood?", "levels": [{"label": "low"}, {"label": "mid"}, {"label": "high"}]},
    {"type": "choice", "instructions": "Which?", "choices": [{"value": f"{i}"} for i in range(27)]},
]
STREAMS = 63


class InProcess:
    """A `ModelClient` of one engine."""

    def __init__(self, folder: Path, caching: bool) -> None:
        config = EngineConfig(
            dtype="float32", kv_cache_bytes=2**24, max_num_seqs=64, threads=1, enable_prefix_caching=caching
        )
        self.engine = AsyncEngine.load(str(folder), config)
        self.tokenizer = load_tokenizer(resolve_source(str(folder)))
        self.generate: Callable[[Request], AsyncGenerator[list[SequenceUpdate], None]] = self.engine.generate
        entry = ModelEntry("tiny", 1, self, tokenizer=self.tokenizer, info=asyncio.run(self.describe()), shards=1)
        self._service = Service(Registry([entry]), Limits(), Telemetry())

    async def describe(self) -> ModelInfo:
        return ModelInfo("tiny", max_model_len=512, vocab_size=259, block_size=16)

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int, claim: object = None) -> Iterator[None]:
        yield

    def placement(self, request_id: str) -> Placement | None:
        return None

    async def abort(self, request_id: str, index: int) -> None:
        raise AssertionError("no request is ended early")

    async def decide(self, *questions: Any, **fields: Any) -> Any:
        body = parse(DecisionRequest, {"input": INPUT, "questions": list(questions), **fields})
        return await decisions(self._service, Call(body=body))

    async def beside_streams(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run something while as many streams run as have room, of any length and each with its own sampling."""
        rng, started = random.Random(1), asyncio.Semaphore(0)

        async def stream(number: int) -> None:
            prompt = [rng.randrange(256) for _ in range(rng.randint(1, 60))]
            params = SamplingParams(max_tokens=200, ignore_eos=True, temperature=number % 3, seed=number, top_k=5)
            request = Request(request_id=f"stream-{number}", prompt_token_ids=prompt, params=params)
            async for _ in self.generate(request):
                started.release()

        streams = [asyncio.create_task(stream(number)) for number in range(STREAMS)]
        for _ in range(STREAMS):
            await started.acquire()
        found = await work()
        assert not all(stream.done() for stream in streams)
        for running in streams:
            running.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        return found


@pytest.fixture(scope="module", params=[True, False], ids=["cache", "no cache"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Iterator[InProcess]:
    found = InProcess(tiny_model("qwen3"), request.param)
    yield found
    found.engine.close()


@pytest.fixture(scope="module")
def expected(tiny_model: Callable[[str], Path]) -> Any:
    """What each question is answered with when nothing else was ever asked."""
    answers = []
    for question in QUESTIONS:
        model = InProcess(tiny_model("qwen3"), caching=False)
        answers += asyncio.run(model.decide(question))["answers"]
        model.engine.close()
    return answers


def test_in_any_company(model: InProcess, expected: Any) -> None:
    first = asyncio.run(model.decide(*QUESTIONS))
    again = asyncio.run(model.decide(*QUESTIONS))
    assert first["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert first["answers"] == again["answers"] == expected
    assert asyncio.run(model.decide(*QUESTIONS[::-1]))["answers"] == expected[::-1]
    assert asyncio.run(model.decide(*QUESTIONS, prompt_cache_options={"mode": "explicit"}))["answers"] == expected
    assert len({str(answer) for answer in expected}) == len(QUESTIONS)


def test_beside_63_streams(model: InProcess, expected: Any) -> None:
    found = asyncio.run(model.beside_streams(lambda: model.decide(*QUESTIONS)))
    assert found["answers"] == expected
    fresh = {"prompt_cache_options": {"mode": "explicit"}}
    assert asyncio.run(model.beside_streams(lambda: model.decide(*QUESTIONS, **fresh)))["answers"] == expected


def test_the_state_comes_from_the_cache(model: InProcess) -> None:
    asyncio.run(model.decide(*QUESTIONS))
    usage = asyncio.run(model.decide(*QUESTIONS))["usage"]["input_tokens_details"]
    caching = model.engine.engine.config.enable_prefix_caching
    assert usage["cached_tokens"] == (48 if caching else 0)  # three blocks of its 54 tokens
