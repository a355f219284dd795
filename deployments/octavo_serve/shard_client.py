"""One model's shards as the gateway sees them: requests go to the shard that the router picks, and survive it.

The client keeps what each sequence has emitted. When the shard dies, leaves, falls silent or its engine stops, the
rest of the request runs on another: prompt and emitted tokens, the same seed, what is left of `max_tokens`
(`Request.emitted`). Random numbers are counted by position, so the tokens are those of the unbroken run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Literal

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from octavo.engine.async_engine import Stream
from octavo.engine.stats import EngineStats
from octavo.errors import EngineDead, OctavoError, Overloaded
from octavo.request import Placement, Request, SequenceUpdate
from octavo_serve.api.model import ModelInfo
from octavo_serve.channel import TO_GATEWAY, Abort, Address, Channel, Leaving, Refusal, Step, Submit, ToGateway
from octavo_serve.picker import Picked, Picker

logger = logging.getLogger("ray.serve")

STATS_TIMEOUT = 2.0
"""Seconds a shard may take to answer for /health and /metrics; its methods only read numbers."""

CONNECT_SECONDS = 3.0
CLOSING_SECONDS = 1.0  # between two looks whether anything runs
PAUSE_SECONDS = 0.05  # between two attempts to find a shard that takes a request

MoveReason = Literal["lost", "left"]


class ShardGone(Exception):
    """The shard that ran a request no longer does.

    Attributes:
        reason: "lost" (died, silent, its engine stopped) or "left" (it was told to end and hands over).
    """

    def __init__(self, reason: MoveReason) -> None:
        super().__init__(reason)
        self.reason: MoveReason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class Failover:
    """How long and how often a request may look for a shard (see `settings.GatewaySettings`).

    Attributes:
        timeout: seconds to wait for a shard that takes it.
        moves: shards that may die under one request.
        silence: seconds without a sign of life after which a shard counts as dead.
    """

    timeout: float = 120.0
    moves: int = 5
    silence: float = 10.0


class ShardClient:
    """One model's shards; what Ray raises comes out as Octavo's errors.

    Args:
        handle: of the shards' deployment.
        picker: of its shards.
        failover: limits.
        moved: told why, each time a request moves to another shard.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        picker: Picker,
        failover: Failover,
        moved: Callable[[MoveReason], None],
    ) -> None:
        self._handle = handle
        self._picker = picker
        self.failover = failover
        self._moved = moved
        self._links: dict[Address, asyncio.Task[Link | None]] = {}
        self._runs: dict[str, _Run] = {}
        self._info: ModelInfo | None = None

    async def describe(self) -> ModelInfo:
        if self._info is None:
            with octavo_errors():
                self._info = await self._handle.describe.remote()
        return self._info

    async def stats(self) -> list[tuple[str, EngineStats]]:
        """(shard name, statistics) of the shards that answer in time."""
        try:
            answers = await self._handle.broadcast("stats").results_async(
                timeout_s=STATS_TIMEOUT, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def num_running(self) -> int:
        """Requests that run at a shard or look for one."""
        return len(self._runs)

    def placement(self, request_id: str) -> Placement | None:
        """Where a request that runs was sent last."""
        run = self._runs.get(request_id)
        return None if run is None else run.request.placement

    async def close(self) -> None:
        """Let what runs come to its end, and follow the shards no more."""
        while self._runs:
            await asyncio.sleep(CLOSING_SECONDS)
        await self._picker.close()

    async def abort(self, request_id: str, index: int) -> None:
        if (run := self._runs.get(request_id)) is not None:
            run.end(index)

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        run = self._runs[request.request_id] = _Run(request)
        deaths, deadline = 0, 0.0
        try:
            while True:
                try:
                    async with aclosing(self._on_one_shard(run)) as stream:
                        async for updates in stream:
                            yield updates
                    return
                except Overloaded:  # what was accepted once is not refused because its shard died
                    if time.monotonic() >= deadline:
                        raise
                    await asyncio.sleep(PAUSE_SECONDS)
                except ShardGone as gone:
                    deaths += gone.reason == "lost"
                    if deaths > self.failover.moves:
                        raise EngineDead(f"{deaths} shards died while they ran this request; it is given up") from None
                    deadline = time.monotonic() + self.failover.timeout
                    self._moved(gone.reason)
        finally:
            del self._runs[request.request_id]

    async def _on_one_shard(self, run: _Run) -> AsyncGenerator[list[SequenceUpdate], None]:
        picked = await self._begin(run)
        try:
            while run.living:
                yield run.taken(await run.stream.take())
        except ShardGone:
            picked.gone()
            raise
        finally:
            run.leave()
            picked.ended(ran=run.ran)

    async def _begin(self, run: _Run) -> Picked:
        """Send a run to a shard that is there.

        Raises:
            EngineDead: none was, for too long, or the deployment has failed.
        """
        seconds = self.failover.timeout
        try:
            with octavo_errors():
                async with asyncio.timeout(seconds):
                    while True:
                        picked = await self._picker.pick(run.request)
                        if await self._enter(run, picked):
                            return picked
                        await asyncio.sleep(PAUSE_SECONDS)
        except TimeoutError:
            raise EngineDead(f"no shard of this model was there for {seconds:g} s; see the server's log") from None

    async def _enter(self, run: _Run, picked: Picked) -> bool:
        """Send a run to a shard; False when that does not answer. Unless it is sent, its place is free again."""
        try:
            if (link := await self._link(picked.address)) is not None:
                run.enter(link, picked.placement)
                return True
        except BaseException:
            picked.ended(ran=False)
            raise
        picked.gone()
        picked.ended(ran=False)
        return False

    async def _link(self, address: Address) -> Link | None:
        """The connection to a shard; None when it does not answer."""
        if (task := self._links.get(address)) is None:
            forget = functools.partial(self._links.pop, address, None)
            task = self._links[address] = asyncio.create_task(Link.open(address, self.failover.silence, forget))
        return task.result() if task.done() else await asyncio.shield(task)


class Link:
    """The connection to one shard and the streams that come over it.

    Args:
        silence: seconds without a sign of life after which it is given up.
        ended: called when no more requests may be sent.
    """

    def __init__(self, silence: float, ended: Callable[[], object]) -> None:
        self.streams: dict[str, Stream] = {}
        self._loop = asyncio.get_running_loop()
        self._silence = silence
        self._ended = ended
        self._gone: MoveReason | None = None
        self._heard: float | None = None
        self._answered = asyncio.Event()
        self._channel = Channel(TO_GATEWAY, self._receive, self._lost)
        self._listening = self._loop.create_task(self._listen())

    @classmethod
    async def open(cls, address: Address, silence: float, ended: Callable[[], object]) -> Link | None:
        """Connect and wait for a sign of life; None when there is none (a stopped process still accepts)."""
        link = cls(silence, ended)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await link._loop.create_connection(lambda: link._channel, address.host, address.port)
                link._channel.introduce(bytes.fromhex(address.secret))
                await link._answered.wait()
        except OSError:
            link._lost()
            link._channel.abort()
        return None if link._gone else link

    def submit(self, request: Request) -> Stream:
        """Start a request."""
        self._channel.send(Submit(request))  # first: what cannot be encoded leaves no stream behind
        stream = self.streams[request.request_id] = Stream(self._loop)
        if self._gone:
            stream.failed(request.request_id, ShardGone(self._gone))
        return stream

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its sequences."""
        self._channel.send(Abort(request_id, index))

    def _receive(self, message: ToGateway) -> None:
        self._heard = self._loop.time()
        self._answered.set()
        if isinstance(message, Step):
            self._step(message.updates)
        elif isinstance(message, Refusal):
            if (stream := self.streams.get(message.request_id)) is not None:
                error = message.error()
                stream.failed(message.request_id, ShardGone("lost") if isinstance(error, EngineDead) else error)
        elif isinstance(message, Leaving):
            self._end("left")

    def _step(self, updates: list[SequenceUpdate]) -> None:
        first = 0
        for last, update in enumerate(updates, 1):  # a request's updates lie side by side
            if last == len(updates) or updates[last].request_id != update.request_id:
                if (stream := self.streams.get(update.request_id)) is not None:
                    stream.updated(updates[first:last])
                first = last

    def _end(self, reason: MoveReason) -> None:
        self._gone = self._gone or reason
        self._answered.set()
        self._ended()
        for request_id, stream in self.streams.items():
            stream.failed(request_id, ShardGone(self._gone))

    def _lost(self) -> None:
        self._end("lost")
        self._listening.cancel()

    async def _listen(self) -> None:
        """Give a shard up that has fallen silent: a machine that is gone closes no connection."""
        await self._answered.wait()
        while (rest := (self._heard or 0.0) + self._silence - self._loop.time()) > 0:
            await asyncio.sleep(rest)
        logger.error("A shard has not given a sign of life for %g s; its streams move", self._silence)
        self._channel.abort()


class _Run:
    """One request on its way over one shard or several.

    Attributes:
        request: what the next shard is asked.
        living: indices of the sequences that have not ended.
        ran: whether the shard that has it now has said anything of it.
        stream: what comes from the shard that has it now.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.living = set(range(request.params.num_sequences))
        self.ran = False
        self.stream: Stream
        self._link: Link | None = None
        self._emitted: list[list[int]] = [[] for _ in self.living]
        self._sums = [0.0 for _ in self.living]  # cumulative log probabilities
        self._sums_before = list(self._sums)  # those of earlier shards
        self._begun = False

    def enter(self, link: Link, placement: Placement) -> None:
        emitted = self.request.emitted
        if self._begun:
            emitted = [tokens if index in self.living else None for index, tokens in enumerate(self._emitted)]
            self._sums_before = list(self._sums)
        self.request = dataclasses.replace(self.request, placement=placement, emitted=emitted)
        self.ran = False
        self._link = link
        self.stream = link.submit(self.request)

    def leave(self) -> None:
        """Whatever happened, this shard is done with the request."""
        assert self._link is not None
        self._link.streams.pop(self.request.request_id, None)
        if self.living:
            self._link.abort(self.request.request_id)
        self._link = None

    def end(self, index: int) -> None:
        """The caller wants no more of a sequence; what has come of it already is not taken back."""
        self.living.discard(index)
        if self._link is not None:
            self._link.abort(self.request.request_id, index)

    def taken(self, updates: list[SequenceUpdate]) -> list[SequenceUpdate]:
        """Note what came; of a request that has moved, make it what the unbroken run would have said."""
        moved = self.request.emitted is not None
        self._begun = self.ran = True
        for update in updates:
            index = update.index
            self._emitted[index] += update.token_ids
            if moved:
                update.num_cached_tokens = 0  # the client was told of the prompt's already
                update.cumulative_logprob += self._sums_before[index]
            self._sums[index] = update.cumulative_logprob
            if update.finish_reason is not None:
                self.living.discard(index)
        return updates


@contextmanager
def octavo_errors() -> Iterator[None]:
    """Raise what a shard raised, and Ray's own failures as `EngineDead` or `Overloaded`."""
    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, OctavoError) else error) from None
    except BackPressureError as error:
        raise Overloaded(str(error), retry_after=1.0) from None
    except (ActorDiedError, ActorUnavailableError, DeploymentUnavailableError, RequestCancelledError) as error:
        logger.warning("A shard is gone: %s", error)  # Ray names processes, machines and paths
        raise EngineDead("the shard is gone; the server's log says more") from None
