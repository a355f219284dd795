"""A gateway's end of the connection to one shard."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from octavo.engine.async_engine import Stream
from octavo.engine.stats import EngineStats
from octavo.errors import EngineDead, EngineStopped
from octavo.load import Phase
from octavo.request import PackedLogprobs, Request, SequenceUpdate
from octavo.routing.router import Router
from octavo_serve.wire.challenge import Challenge
from octavo_serve.wire.channel import Channel
from octavo_serve.wire.messages import (
    TO_GATEWAY,
    Abort,
    Address,
    Ask,
    AskCourses,
    AskStatistics,
    Blocks,
    Bring,
    Courses,
    Do,
    Hello,
    Inherit,
    Leaving,
    Manage,
    Managed,
    PeerAddresses,
    PromptPart,
    Refusal,
    Report,
    Snapshot,
    Statistics,
    Step,
    Submit,
    ToGateway,
    Weights,
)
from octavo_serve.wire.parts import is_long, request_parts

logger = logging.getLogger("ray.serve")

CONNECT_SECONDS = 3.0
ASK_SECONDS = 0.25
ANSWER_SECONDS = 1.25
"""A shard that has said nothing for so long is not counted as there; it may still come back in time."""

SOON_SECONDS = 0.05
"""That newer statistics are waited for; /metrics is to answer within 0.1 s."""
OLD_SECONDS = 2.0
"""Age from which statistics are not given any more."""
UNREAD_SECONDS = 120.0
"""After so long without a reader statistics are asked for no more; between two scrapes of /metrics it is a minute."""

COURSES_SECONDS = 2.0
"""That a shard may take to say where a request's time went."""

MESSAGE_SECONDS = 2e-4
"""Of a gateway's time, for a message about blocks and a report of each shard: what 50 shards say every 10 ms is as much
as it should hear, which takes it a tenth of a core. Of more shards it asks each to speak less often."""

SNAPSHOT_SECONDS = 0.5
"""Shortest time between two wishes for a snapshot."""

MoveReason = Literal["lost", "left", "refused"]


class ShardGone(Exception):
    """The shard that ran a request no longer does.

    Attributes:
        reason: "lost" (died, silent, its engine stopped), "left" (it was told to end and hands over) or "refused" (its
            engine takes nothing now, and never ran the request).
    """

    def __init__(self, reason: MoveReason) -> None:
        super().__init__(reason)
        self.reason: MoveReason = reason


class Link:
    """The connection to one shard: the streams that come over it, and what the shard says of itself.

    Args:
        silence: seconds without a word after which it is given up.

    Attributes:
        hello: who the shard is, and what its model takes; None until it is there.
        gone: why no more requests may be sent; None while they may.
        phase, level: what its model does, and at which level it sleeps.
        on_change: called when one of these, or the model in `hello`, may have changed.
        dismissed: whether the shard answered when it was no longer wanted; what ends it then is no crash.
        on_end: called once, when `gone` is set.
        introduced: where shards give KV blocks, as this one was told last.
    """

    def __init__(self, address: Address, silence: float) -> None:
        self.streams: dict[str, Stream] = {}
        self.hello: Hello | None = None
        self.gone: MoveReason | None = None
        self.dismissed = False
        self.on_end: Callable[[], object] = lambda: None
        self.introduced: dict[str, Address] = {}
        self.phase: Phase = "awake"
        self.level = 0
        self.on_change: Callable[[], object] = lambda: None
        self._managed: dict[int, asyncio.Future[Managed | None]] = {}  # by ticket
        self._tickets = itertools.count()
        self._router: Router | None = None
        self._name = ""
        self._asked = -math.inf  # when for a snapshot
        self._prompts: dict[str, PackedLogprobs] = {}  # by request: what has come before its first update
        self._measured: asyncio.Future[EngineStats | None] | None = None
        self._explaining = asyncio.Lock()  # one question at a time: an answer takes the shard some milliseconds
        self._courses: asyncio.Future[Courses | None] | None = None
        self._stats: EngineStats | None = None  # the last that were said
        self._stats_at = self._read_at = -math.inf
        self._retired = False
        self._loop = asyncio.get_running_loop()
        self._silence = silence
        self._answered = asyncio.Event()
        challenge = Challenge(bytes.fromhex(address.secret), opens=True)
        self._channel = Channel(TO_GATEWAY, self._receive, self._lost, self._ask, challenge)
        self._watching = self._loop.create_task(self._watch())

    @classmethod
    async def open(cls, address: Address, silence: float) -> Link | None:
        """Connect and wait for the shard's hello; None when it does not come (a stopped process still accepts)."""
        link = cls(address, silence)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await link._loop.create_connection(lambda: link._channel, address.host, address.port)
                await link._answered.wait()
        except OSError:
            link._lost()
        except BaseException:
            link.close()
            raise
        if link.gone:
            link.close()
            return None
        return link

    def close(self) -> None:
        """End the connection, and what runs over it."""
        self._channel.abort()
        self._lost()

    def tell(self, router: Router | None, name: str) -> None:
        """Have a router hear of the shard, by this name, from now on; None: no router any more."""
        self._router, self._name, self._asked = router, name, -math.inf
        if router is not None:
            self._ask()

    def submit(self, request: Request, stream: Stream) -> None:
        """Start a request, whose updates go into `stream`."""
        if is_long(request):
            parts = request_parts(request)
            self.streams[request.request_id] = stream
            self._channel.send_in_parts(self._while_read(request.request_id, stream, parts))
        else:
            self._channel.send_soon(Submit(request))  # first: what cannot be encoded leaves no stream behind
            self.streams[request.request_id] = stream
        if self.gone:
            stream.failed(request.request_id, ShardGone(self.gone))

    def _while_read(self, request_id: str, stream: Stream, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            if self.streams.get(request_id) is not stream:
                return
            yield part

    def forget(self, request_id: str) -> None:
        """Nobody reads a request's stream any more."""
        self.streams.pop(request_id, None)
        self._prompts.pop(request_id, None)
        if self._retired and not self.streams:
            self.close()

    def retire(self) -> None:
        """End the connection once nothing runs over it any more."""
        self._retired = True
        self.dismissed = self.answers
        if not self.streams:
            self.close()

    @property
    def takes_requests(self) -> bool:
        """Whether its model is awake; one that is about to fall asleep ends what was accepted before."""
        return self.phase in ("awake", "dozing")

    @property
    def answers(self) -> bool:
        """Whether the shard has said something a moment ago: it answers each `Ask`."""
        return self.gone is None and self._channel.silent_for(0) < ANSWER_SECONDS

    async def stats(self, seconds: float) -> EngineStats | None:
        """The shard's statistics; None if it does not answer in time.

        From the first time on it is asked for them every second, while somebody reads them, so that they need not be
        waited for where it is busy and answers late.
        """
        if self.gone:
            return None
        self._read_at = time.monotonic()
        measured = self._measure()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if self._stats is None else min(seconds, SOON_SECONDS)):
                return await asyncio.shield(measured)
        return self._stats if time.monotonic() - self._stats_at < OLD_SECONDS else None

    def _measure(self) -> asyncio.Future[EngineStats | None]:
        """Ask for statistics, unless that is under way."""
        if self._measured is None or self._measured.done():
            self._measured = self._loop.create_future()
            self._channel.send(AskStatistics())
        return self._measured

    async def courses(self, request_id: str, block: bytes) -> Courses | None:
        """Where a request's time went, and how a block left; None if the shard does not answer in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COURSES_SECONDS), self._explaining:
                if self.gone:
                    return None
                self._courses = self._loop.create_future()
                self._channel.send(AskCourses(request_id, block))
                while (answer := await self._courses) is not None and answer.request_id != request_id:
                    self._courses = self._loop.create_future()  # that was for who did not wait any longer
                return answer
        return None

    def introduce(self, peers: PeerAddresses) -> None:
        """Tell the shard where all of them give KV blocks."""
        self.introduced = peers.addresses
        self._channel.send(peers)

    def inherit(self, name: str) -> None:
        """Have the shard fetch what is hot at another one, which is about to leave."""
        self._channel.send(Inherit(name))

    def bring(self, name: str, hashes: Sequence[bytes]) -> None:
        """Have the shard fetch blocks from another one, for a request that is about to come to it."""
        self._channel.send(Bring(name, list(hashes)))

    async def manage(self, do: Do, *, level: int = 1, path: str = "") -> str:
        """Have the shard do something with its model's weights; returns what those are called that it has staged.

        Raises:
            OctavoError: it was not done.
        """
        if self.gone:
            raise EngineDead("the shard is gone")
        ticket = next(self._tickets)
        answer: asyncio.Future[Managed | None] = self._loop.create_future()
        self._managed[ticket] = answer
        self._channel.send(Manage(ticket, do, level, path))
        try:
            found = await answer
        finally:
            del self._managed[ticket]
        if found is None:
            raise EngineDead("the shard has gone meanwhile")
        if found.error is not None:
            raise found.error.error()
        return found.weights

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its sequences."""
        self._channel.send(Abort(request_id, index))

    def _receive(self, message: ToGateway) -> None:
        match message:
            case Step():
                self._step(message.updates)
            case Blocks() | Snapshot() | Report():
                self._hear(message)
            case Refusal():
                if (stream := self.streams.get(message.request_id)) is not None:
                    error = message.error()
                    if isinstance(error, EngineStopped):
                        self.close()  # all that ran there has ended, and nothing more will come
                    refused = isinstance(error, EngineDead)
                    stream.failed(message.request_id, ShardGone("refused") if refused else error)
            case PromptPart():
                if message.request_id in self.streams:
                    self._prompts.setdefault(message.request_id, PackedLogprobs()).extend(message.logprobs)
            case Statistics():
                self._stats, self._stats_at = message.stats, time.monotonic()
                if self._measured is not None and not self._measured.done():
                    self._measured.set_result(message.stats)
            case Courses():
                if self._courses is not None and not self._courses.done():
                    self._courses.set_result(message)
            case Managed():
                if (answer := self._managed.get(message.ticket)) is not None and not answer.done():
                    answer.set_result(message)
            case Weights():
                if self.hello is not None:
                    self.hello = Hello(self.hello.shard, message.model)
                self.phase, self.level = message.phase, message.level
                self.on_change()
            case Hello():
                self.hello = message
                self._answered.set()
            case Leaving():
                self._end("left")

    def _step(self, updates: list[SequenceUpdate]) -> None:
        first = 0
        for last, update in enumerate(updates, 1):  # a request's updates lie side by side
            if last == len(updates) or updates[last].request_id != update.request_id:
                if (stream := self.streams.get(update.request_id)) is not None:
                    if self._prompts and (packed := self._prompts.pop(update.request_id, None)) is not None:
                        updates[first].prompt_logprobs = packed
                    stream.updated(updates[first:last])
                first = last

    def _hear(self, message: Blocks | Snapshot | Report) -> None:
        """Take in what the shard says of itself."""
        if self._router is None or (shard := self._router.shards.get(self._name)) is None:
            return
        exact = shard.blocks.exact
        match message:
            case Snapshot():
                shard.blocks.part(message.sequence, message.index, message.count, [message.hashes])
            case Blocks():
                shard.blocks.changes(message.first, [(kind, [hashes]) for kind, hashes in message.changes])
            case Report():
                shard.blocks.changes(message.next, [])  # a later number than expected is a gap
                said = message.state, message.tickets, message.echo, message.adapters
                self._router.heard(self._name, *said)
        if exact and not shard.blocks.exact:
            self._ask()

    def _ask(self) -> None:
        """Ask how things are, and for a snapshot where one is needed."""
        now = time.monotonic()
        shard = None if self._router is None else self._router.shards.get(self._name)
        needs = shard is not None and not shard.blocks.exact and now - self._asked >= SNAPSHOT_SECONDS
        self._asked = now if needs else self._asked
        pace = 0.0 if self._router is None else len(self._router.shards) * MESSAGE_SECONDS
        self._channel.send(Ask(now, needs, pace))

    def _end(self, reason: MoveReason) -> None:
        if self.gone is None:
            self.gone = reason
            self._answered.set()
            if self._measured is not None and not self._measured.done():
                self._measured.set_result(None)
            if self._courses is not None and not self._courses.done():
                self._courses.set_result(None)
            for answer in self._managed.values():
                if not answer.done():
                    answer.set_result(None)
            self.on_end()
        for request_id, stream in self.streams.items():
            stream.failed(request_id, ShardGone(self.gone))

    def _lost(self) -> None:
        self._end("lost")
        self._watching.cancel()

    async def _watch(self) -> None:
        """Ask, and give a shard up that has fallen silent: a machine that is gone closes no connection."""
        await self._answered.wait()
        awake = 0.0
        while self._channel.silent_for(awake) < self._silence:
            self._ask()
            before = time.monotonic()
            if before - self._read_at > UNREAD_SECONDS:
                self._measured = self._stats = None
            elif before - self._stats_at > OLD_SECONDS / 2:
                self._measure()
            await asyncio.sleep(ASK_SECONDS)
            awake = min(time.monotonic() - before, 2 * ASK_SECONDS)
        logger.error("A shard has not given a sign of life for %g s; its streams move", self._silence)
        self._channel.abort()
