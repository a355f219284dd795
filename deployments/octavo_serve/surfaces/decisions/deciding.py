"""Runs a request's forks, and makes probabilities of what they say."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TypeVar

from octavo.errors import BadRequest, EngineDead, ModelNotReady, OctavoError, Overloaded
from octavo.pooled import check_task
from octavo.request import Placement, Request, SequenceUpdate
from octavo_serve.api import genai
from octavo_serve.api.chats import Chat
from octavo_serve.api.jobs import USUAL_TOKEN, Asked
from octavo_serve.api.model import Claim, ServedModel
from octavo_serve.api.prompts import is_long
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import RequestTimer
from octavo_serve.surfaces.decisions.forks import Fork, Forks, forks_of
from octavo_serve.surfaces.decisions.probabilities import softmax
from octavo_serve.surfaces.decisions.questions import Question, Questions
from octavo_serve.surfaces.decisions.state import framed

T = TypeVar("T")

FAN_OUT = 64
"""Forks of one request that run or wait at once: as many as fill a step, and few enough to hold all their prompts."""
_OF_ALL = (BadRequest, Overloaded, ModelNotReady, EngineDead)
"""Errors that say something of the request or the server; others are a question's own."""


@dataclass(slots=True)
class Decided:
    """What a request's questions are answered with.

    Attributes:
        probabilities: by question, one per option; None where the model did not answer it.
        prompt_tokens: of the state and all questions, each once.
        cached_tokens: of the state, found in the prefix cache.
        written_tokens: of the state, now in the prefix cache and not before.
    """

    model: str
    probabilities: list[list[float] | None]
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int


async def decide(service: Service, asked: Asked, questions: Questions) -> Decided:
    """Answer questions about one state.

    Args:
        asked: its content is the state, a chat.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
        OctavoError: no question could be answered.
    """
    genai.asks(asked)
    service.lateness.check()
    service.telemetry.ledger.quotas.check(asked.tenant)
    chat = asked.content
    assert isinstance(chat, Chat)
    claim, tokens = Claim.of(asked.deadline_ms, asked.tenant), asked.size[1] + questions.characters // USUAL_TOKEN
    model = await service.models.served(asked.model, asked.session, chat.check, tokens, ("generate",))
    with model.admitted(asked.priority, _key(asked, questions.each), len(questions.each), tokens, claim):
        info = await model.client.describe()
        check_task("generate", info.tasks, model.name)
        frame = await framed(chat, model.tokenizer, service.template_threads)
        request_id = f"{asked.kind}-{secrets.token_hex(12)}"
        work = partial(forks_of, model.tokenizer, info, frame, questions.each, asked, request_id, model.adapter)
        long = is_long([frame.before]) or questions.characters >= MANY_CHARACTERS
        forks = await service.prompt_threads.finish(work) if long else work()
    with service.telemetry.ledger.entry(asked.tenant, model, forks.prompt_tokens, 0) as used:
        timer = service.telemetry.request(model.name, forks.prompt_tokens, "chat", priority=asked.priority)
        decided = await _Deciding(model, forks, timer).run()
        used.prompt(model.cost(), decided.prompt_tokens, decided.cached_tokens, ())
        return decided


MANY_CHARACTERS = 2048
"""Of questions, that take a few ms to tokenise: each is a call of the tokenizer."""


def _key(asked: Asked, questions: Sequence[Question]) -> Callable[[], bytes]:
    """As `Asked.key`, and other questions have another."""

    def key() -> bytes:
        last = questions[-1]
        text = repr((asked.key(), len(questions), last.instructions[:MANY_CHARACTERS], len(last.options)))
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    return key


class _Deciding:
    """One request that runs."""

    def __init__(self, model: ServedModel, forks: Forks, timer: RequestTimer) -> None:
        self._model = model
        self._forks = forks
        self._timer = timer
        self._places = asyncio.Semaphore(FAN_OUT)
        self._making = asyncio.Lock()
        self._cached: int | None = None  # what the first prompt of all found
        self._errors: list[OctavoError] = []

    async def run(self) -> Decided:
        forks = self._forks
        for step, prefixes in enumerate(forks.shared):
            requests = [forks.prefix_request(prefix, f"prefix-{step}-{i}") for i, prefix in enumerate(prefixes)]
            await _all(self._last_update(request) for request in requests)
        found = await _all(self._answered(number) for number in range(len(forks.labels)))
        if self._errors and not any(found):
            raise self._errors[0]
        self._timer.done()
        blocks = len(forks.state.chain) * forks.block_size
        cached = min(self._cached or 0, blocks)
        return Decided(self._model.name, found, forks.prompt_tokens, cached, blocks - cached)

    async def _answered(self, question: int) -> list[float] | None:
        """A question's probabilities; None if it alone failed."""
        try:
            logprobs = await self._logprobs(question)
        except _OF_ALL:
            raise
        except OctavoError as error:
            self._errors.append(error)
            return None
        self._timer.tokens(question, 1)
        self._timer.finished("length")
        return softmax(logprobs)

    async def _logprobs(self, question: int) -> list[float]:
        """The log probability of each option's label."""
        first = await self._fork(self._forks.first(question), f"{question}")
        seconds = self._forks.seconds(question)
        if not seconds:
            return first
        # after the first, not beside it: then they find the question's blocks in the cache
        more = await _all(self._fork(fork, f"{question}-{number}") for number, fork in enumerate(seconds))
        return [letter + digit for letter, digits in zip(first, more, strict=True) for digit in digits]

    async def _fork(self, fork: Fork, name: str) -> list[float]:
        async with self._places:
            async with self._making:  # one in a turn of the event loop: a long prompt takes a part of a millisecond
                request = self._forks.request(fork, name)
                await asyncio.sleep(0)
            update = await self._last_update(request)
        assert update.logprobs
        entries = update.logprobs[0]
        return [entries[token_id].logprob for token_id in fork.candidates]

    async def _last_update(self, request: Request) -> SequenceUpdate:
        """The only update of a request that makes no more than one token."""
        client = self._model.client
        async with aclosing(client.generate(request)) as stream:
            async for updates in stream:
                for update in updates:
                    if update.finish_reason == "error":
                        raise OctavoError(str(update.stop_reason))
                    if update.finish_reason is not None:
                        self._came(client.placement(request.request_id), update)
                        return update
        raise EngineDead("the shard's stream ended before the request did")

    def _came(self, placement: Placement | None, update: SequenceUpdate) -> None:
        """Compare the first of all prompts with what the router predicted: later ones have waited for others."""
        if self._cached is None:
            self._cached = update.num_cached_tokens
            if placement is not None:
                self._timer.placed(placement, update.num_cached_tokens)
            if update.prefill is not None:
                self._timer.began(update.prefill)


async def _all(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """The results of what runs at the same time; the first error ends the others, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
