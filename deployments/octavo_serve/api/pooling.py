"""Runs the many texts of one request that wants vectors, scores or classes.

    Asking ── accepted ──> the model ── encoded ──> token ids of all texts ── run ──> what came of each, in order
              refused if it would wait too long      beside the event loop     a bounded number at a time

Closing, or an error of one text, ends all that still run.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TypeVar

from octavo.block_hash import Origin, hash_chain
from octavo.errors import BadRequest, DeadlineMissed, EngineDead, OctavoError, Overloaded
from octavo.pooling import Pooling, Task
from octavo.request import Request, SamplingParams, SequenceUpdate
from octavo_serve.api import genai
from octavo_serve.api.bounds import MAX_TEXTS
from octavo_serve.api.failures import failure_of
from octavo_serve.api.jobs import USUAL_TOKEN
from octavo_serve.api.model import NO_CLAIM, Claim, ServedModel
from octavo_serve.api.prompts import LONG
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Operation, RequestTimer
from octavo_serve.api.tenants import NOBODY, Tenant
from octavo_serve.api.texts import NO_CUT, Cut, Encoded, Encoder, Pair, Text
from octavo_serve.wire.messages import ModelInfo

logger = logging.getLogger("ray.serve")

T = TypeVar("T")

Encode = Callable[[Sequence[Text], int], list[Encoded]]
"""Makes token ids of some texts, given the number of the first of them."""

WINDOW = 256
"""Texts of one request that run or wait at shards at once: enough for two steps of short ones."""
WINDOWS = 1024
"""The same of all requests for one model, which take turns: a shard's queue holds four gateways' (`EngineConfig`)."""
MOST_HELD = 2**28
"""Characters, or token ids, of the texts that a gateway holds: the largest bodies of sixteen clients."""
STARTS = 16
"""Texts sent on their way in one turn of the event loop: 2 ms."""
SLICE = 2**16
"""Characters, or token ids, that a thread encodes before it takes up another request's: about 15 ms."""
_KEPT = 1024  # characters of the last text that a request's key is made of


@dataclass(slots=True, kw_only=True)
class Asking:
    """Who asks what of a model, before the model is known.

    Attributes:
        kind: prefix of the request's id.
        operation: what it counts as.
        model: a model's name or alias; None if there is only one.
        param: the field that holds the texts, for errors.
        name: of a text in errors, by its number; None: the field and the number.
        session, priority, cache_salt, asker, tenant, deadline_ms: as of `Asked`.
    """

    kind: str
    operation: Operation
    model: str | None
    param: str
    name: Callable[[int], str] | None = None
    cut: Cut = NO_CUT
    add_special_tokens: bool = True
    hint: str = "shorten it, or send truncate_prompt_tokens: -1"
    session: str = ""
    priority: int = 0
    cache_salt: str = ""
    asker: str = ""
    tenant: Tenant = NOBODY
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A model that has accepted a request."""

    service: Service
    asking: Asking
    model: ServedModel
    info: ModelInfo
    claim: Claim = NO_CLAIM

    async def encoded(self, texts: Sequence[Text], encode: Encode | None = None) -> list[Encoded]:
        """The token ids of all texts; of many in a thread, a slice after the other, so that others get their turn.

        Args:
            encode: makes them; None: the model's tokenizer alone does.

        Raises:
            PromptTooLong, BadRequest: naming the first text that is wrong.
        """
        encode = encode or self.encoder.encode
        if sum(map(_length, texts)) < LONG:
            return encode(texts, 0)
        made: list[Encoded] = []
        while len(made) < len(texts):
            made += await self.service.prompt_threads.finish(encode, _slice(texts, len(made)), len(made))
        return made

    @property
    def encoder(self) -> Encoder:
        """Makes token ids of its texts."""
        asking = self.asking
        return Encoder(
            tokenizer=self.model.tokenizer,
            info=self.info,
            name=asking.name or f"{asking.param}[{{}}]".format,
            param=asking.param,
            cut=asking.cut,
            add_special_tokens=asking.add_special_tokens,
            hint=asking.hint,
        )


def _length(text: Text) -> int:
    return len(text.first) + len(text.second) if isinstance(text, Pair) else len(text)


def _slice(texts: Sequence[Text], first: int) -> Sequence[Text]:
    found = 0
    for end in range(first, len(texts)):
        found += _length(texts[end])
        if found >= SLICE:
            return texts[first : end + 1]
    return texts[first:]


@asynccontextmanager
async def accepted(service: Service, asking: Asking, texts: Sequence[Text]) -> AsyncIterator[Accepted]:
    """A request that its model has accepted; it is prepared within this. Waits while the model loads.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    check_number(len(texts), asking.param)
    genai.begins(asking.operation, asking.model)
    service.lateness.check()
    service.telemetry.ledger.quotas.check(asking.tenant)
    claim, characters = Claim.of(asking.deadline_ms, asking.tenant), sum(map(_length, texts))
    if characters >= LONG and service.held_texts + characters > MOST_HELD:
        raise Overloaded("more texts are being worked on here than fit: try again later", 1.0)
    tokens = characters // (1 if isinstance(texts[0], list) else USUAL_TOKEN)
    model = await service.models.served(asking.model, asking.session, tokens=tokens, tasks=_TASKS[asking.operation])
    at_once = min(len(texts), WINDOW)  # the others wait here, in nobody's way
    key = partial(_key, asking, texts, characters)
    size = at_once, tokens * at_once // len(texts)
    with _held(service, characters), model.admitted(asking.priority, key, *size, claim):
        yield Accepted(service, asking, model, await model.client.describe(), claim)


@contextmanager
def _held(service: Service, characters: int) -> Iterator[None]:
    """Count a request's texts for as long as they are held."""
    service.held_texts += characters
    try:
        yield
    finally:
        service.held_texts -= characters


_TASKS: dict[Operation, tuple[Task, ...]] = {
    "embeddings": ("embed",),
    "rerank": ("embed", "classify"),
    "classify": ("classify",),
}
"""What a model must do for a request that names none."""


def check_number(count: int, param: str) -> None:
    """Refuse no texts, and more than one request may hold.

    Raises:
        BadRequest: naming the field.
    """
    if not count:
        raise BadRequest(f"{param} must not be empty", param)
    if count > MAX_TEXTS:
        raise BadRequest(f"{param} holds {count} texts; one request may hold {MAX_TEXTS}: send several", param)


def _key(asking: Asking, texts: Sequence[Text], characters: int) -> bytes:
    text = repr(
        (asking.kind, asking.model, asking.session, asking.cache_salt, len(texts), characters, texts[-1][:_KEPT])
    )
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(slots=True)
class Pooled:
    """What came of a request's texts.

    Attributes:
        id: of the request.
        model: its name.
        values: by text, as `SequenceUpdate.pooled`.
    """

    id: str
    model: str
    info: ModelInfo
    prompt_tokens: int
    values: list[bytes]


async def pooled(ready: Accepted, texts: Sequence[Encoded], task: Task) -> Pooled:
    """Run texts.

    Raises:
        BadRequest, Overloaded, EngineDead; OctavoError: a text ended in an error of the engine.
    """
    window = Window(ready, sum(len(text.token_ids) for text in texts))

    def request(number: int) -> Request:
        text = texts[number]
        return window.request(number, text.token_ids.tolist(), _NOTHING, Pooling(task, text.second))

    values = await window.run(len(texts), request, _pooled)
    return Pooled(window.id, ready.model.name, ready.info, window.prompt_tokens, values)


_NOTHING = SamplingParams(max_tokens=0)


def _pooled(update: SequenceUpdate) -> bytes:
    if update.pooled is None:
        raise OctavoError("the engine made no vector of a text")
    return update.pooled


@dataclass(slots=True)
class Window:
    """Runs requests that have one update each, a bounded number at a time.

    Attributes:
        prompt_tokens: of all of them.
        first_alone: the others begin once the first has ended, so that they find what they share with it in the cache.
        cached_tokens: found in the prefix cache.
    """

    ready: Accepted
    prompt_tokens: int
    first_alone: bool = False
    id: str = ""
    cached_tokens: int = 0
    _timer: RequestTimer = field(init=False)
    _begun: bool = False

    def __post_init__(self) -> None:
        asking = self.ready.asking
        self.id = f"{asking.kind}-{secrets.token_hex(12)}"
        telemetry, name = self.ready.service.telemetry, self.ready.model.name
        self._timer = telemetry.request(name, self.prompt_tokens, asking.operation, priority=asking.priority)
        genai.pools(self.id, name, self.prompt_tokens)

    def request(self, number: int, token_ids: list[int], params: SamplingParams, pooling: Pooling | None) -> Request:
        """The request of one text."""
        asking = self.ready.asking
        return Request(
            request_id=f"{self.id}-{number}",
            prompt_token_ids=token_ids,
            params=params,
            priority=asking.priority,
            cache_salt=asking.cache_salt,
            adapter=self.ready.model.adapter,
            block_hashes=self._chain(token_ids),
            session=asking.session,
            seed=0,
            pooling=pooling,
            asker=asking.asker,
            tenant=asking.tenant.name,
            weight=asking.tenant.weight,
            deadline=self.ready.claim.seconds_left,
            cache_share=asking.tenant.cache_share,
        )

    def _chain(self, token_ids: list[int]) -> list[bytes]:
        """Hashes of a text's blocks; none where no cache holds any."""
        info = self.ready.info
        if "generate" not in info.tasks:
            return []
        adapter, salt = self.ready.model.adapter, self.ready.asking.cache_salt
        root, turn = Origin.of(info.hash_name, adapter, salt, token_ids)
        return hash_chain(root, token_ids, info.block_size, turn)

    async def run(self, count: int, request: Callable[[int], Request], read: Callable[[SequenceUpdate], T]) -> list[T]:
        """What `read` makes of each request's update, in order."""
        found: list[T | None] = [None] * count
        service, model = self.ready.service, self.ready.model
        cost = model.cost()

        async def one(number: int) -> None:
            asked = request(number)
            update = await self._update(asked)
            used.prompt(cost, len(asked.prompt_token_ids), update.num_cached_tokens, ())
            found[number] = read(update)

        try:
            with (
                service.telemetry.ledger.entry(self.ready.asking.tenant, model, self.prompt_tokens, 0) as used,
                _held(service, self.prompt_tokens * USUAL_TOKEN),
            ):
                async with asyncio.TaskGroup() as group:
                    await self._start(group, count, one)
        except ExceptionGroup as errors:
            error = errors.exceptions[0]
            if isinstance(error, OctavoError) and (status := failure_of(error).status) >= 500:
                logger.warning("%s: %d: %s", self.id, status, error)
            raise error from None
        except asyncio.CancelledError:
            self._timer.finished("abort")
            raise
        self._timer.done()
        return found  # type: ignore[return-value]

    async def _start(
        self, group: asyncio.TaskGroup, count: int, one: Callable[[int], Coroutine[None, None, None]]
    ) -> None:
        """Start all, each once there is a place for it."""
        mine = asyncio.Semaphore(WINDOW)
        all_requests = self.ready.service.windows.setdefault(self.ready.model.name, asyncio.Semaphore(WINDOWS))

        def ended(task: asyncio.Task[None]) -> None:  # also one that was cancelled before it began
            all_requests.release()
            mine.release()

        for number in range(count):
            await mine.acquire()
            await all_requests.acquire()
            task = group.create_task(one(number))
            task.add_done_callback(ended)
            if number == 0 and self.first_alone:
                await asyncio.wait([task])
            elif number % STARTS == 0:
                await asyncio.sleep(0)

    async def _update(self, request: Request) -> SequenceUpdate:
        client = self.ready.model.client
        async with aclosing(client.generate(request)) as stream:
            async for updates in stream:
                for update in updates:
                    if update.finish_reason in ("error", "late"):
                        kind = OctavoError if update.finish_reason == "error" else DeadlineMissed
                        raise kind(str(update.stop_reason))
                    if update.finish_reason is not None:
                        self._came(request.request_id, update)
                        return update
        raise EngineDead("the shard's stream ended before the request did")

    def _came(self, request_id: str, update: SequenceUpdate) -> None:
        """Count it. The first of all is compared with what the router predicted: later ones have waited for others."""
        self.cached_tokens += update.num_cached_tokens
        self._timer.finished("stop")
        if self._begun:
            return
        self._begun = True
        if (placement := self.ready.model.client.placement(request_id)) is not None:
            self._timer.placed(placement, update.num_cached_tokens)
        if update.prefill is not None:
            self._timer.began(update.prefill)
