"""A model that has an opinion of every label, which depends on the prompt and the label alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import pytest

from octavo.request import Logprob, Placement, Request, SequenceUpdate
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.access import Caller, Rules
from octavo_serve.api.body import parse
from octavo_serve.api.operation import Call
from octavo_serve.api.service import Service
from octavo_serve.api.tenants import NOBODY, Tenant
from octavo_serve.surfaces.decisions.operations import decisions
from octavo_serve.surfaces.decisions.schemas import DecisionRequest
from octavo_serve.surfaces.decisions.systemone import system_one
from octavo_serve.surfaces.decisions.systemone_schemas import SystemOneRequest
from octavo_serve.wire.messages import ModelInfo


@dataclass
class Opinionated:
    """A `ModelClient`.

    Attributes:
        refused: raised where a prompt holds this text.
        broken: a prompt that holds this text ends in an engine's error; "" is in all of them.
        nan: of a prompt that holds this text a log probability is no number.
        full: raised instead of accepting a request.
        sizes: (sequences, tokens) of the requests that came.
        opened: in this order.
        favourite: number of the label that it likes best.
        turns: of the event loop, that a request takes.
        most: requests that ran at once.
    """

    tokenizer: Tokenizer
    cached_tokens: int = 0
    refused: dict[str, Exception] = field(default_factory=dict)
    broken: str | None = None
    full: Exception | None = None
    nan: str | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    opened: list[Request] = field(default_factory=list)
    favourite: int | None = None
    turns: int = 1
    running: int = 0
    most: int = 0

    async def describe(self) -> ModelInfo:
        return ModelInfo("opinionated", max_model_len=4096, vocab_size=self.tokenizer.vocab_size, block_size=16)

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int, claim: object = None) -> Iterator[None]:
        key()
        self.sizes.append((sequences, tokens))
        if self.full is not None:
            raise self.full
        yield

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        self.opened.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            yield [self._update(request)]
        finally:
            self.running -= 1

    def _update(self, request: Request) -> SequenceUpdate:
        text = self.text(request)
        for part, error in self.refused.items():
            if part in text:
                raise error
        if self.broken is not None and self.broken in text and request.params.max_tokens:
            return SequenceUpdate(request.request_id, 0, [], finish_reason="error", stop_reason="not a number")
        if not request.params.max_tokens:
            return SequenceUpdate(
                request.request_id, 0, [], finish_reason="length", num_cached_tokens=self.cached_tokens
            )
        candidates = request.params.logprob_token_ids
        assert candidates is not None
        values = [self.opinion(request.prompt_token_ids, candidate) for candidate in candidates]
        if self.favourite is not None:
            values[self.favourite] = 0.0
        if self.nan is not None and self.nan in text:
            values[-1] = float("nan")
        said = {candidate: Logprob(value, 0) for candidate, value in zip(candidates, values, strict=True)}
        logprobs = [{0: Logprob(-0.1, 1), **said}]
        return SequenceUpdate(
            request.request_id, 0, [0], logprobs, finish_reason="length", num_cached_tokens=self.cached_tokens
        )

    def text(self, request: Request) -> str:
        return self.tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)

    @staticmethod
    def opinion(prompt: list[int], token_id: int) -> float:
        """In [-8, 0]."""
        return -8 * int.from_bytes(blake2b(repr((prompt, token_id)).encode(), digest_size=4).digest()) / 2**32

    def placement(self, request_id: str) -> Placement | None:
        return None

    async def abort(self, request_id: str, index: int) -> None:
        raise AssertionError("nothing is left to abort")


@pytest.fixture
def client(tokenizer: Tokenizer) -> Any:
    return Opinionated(tokenizer)


STATE = "I was charged twice for my order, and nobody answers. " * 8


class Ask:
    """What a client asks by HTTP, without HTTP."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def decisions(
        self, *questions: Any, access: Rules | None = None, session: str = "", tenant: Tenant = NOBODY, **fields: Any
    ) -> Any:
        body = parse(DecisionRequest, {"input": STATE, "questions": list(questions), **fields})
        call = Call(body=body, rules=access or Rules(), session=session, caller=Caller(tenant=tenant))
        return asyncio.run(decisions(self._service, call))

    def system_one(self, questions: Any, state: Any = STATE, rules: Rules | None = None) -> Any:
        body = parse(SystemOneRequest, {"state": state, "questions": questions})
        return asyncio.run(system_one(self._service, Call(body=body, rules=rules or Rules())))


@pytest.fixture
def ask(service: Service) -> Ask:
    return Ask(service)
