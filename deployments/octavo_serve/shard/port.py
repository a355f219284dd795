"""A shard's port: where gateways connect to its engine."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from octavo.engine.served_engine import ServedEngine
from octavo.errors import EngineDead
from octavo.request import PackedLogprobs, SequenceUpdate
from octavo_serve.shard.feed import Feed
from octavo_serve.wire.challenge import SECRET_BYTES, Challenge
from octavo_serve.wire.channel import Channel
from octavo_serve.wire.messages import (
    BEAT_SECONDS,
    TO_SHARD,
    Abort,
    Address,
    Ask,
    AskCourses,
    AskStatistics,
    Bring,
    Courses,
    Hello,
    Inherit,
    Leaving,
    Manage,
    Managed,
    ModelInfo,
    PeerAddresses,
    Refusal,
    RequestPart,
    Statistics,
    Step,
    Submit,
    ToShard,
    Weights,
    encode,
)
from octavo_serve.wire.parts import PART_VALUES, Arriving, logprob_parts, steps

FEW_UPDATES = 256
"""Updates that are one message if they have no log probabilities: 130 KB at most."""

GATEWAY_SILENCE = 30.0
"""Seconds without a word after which a gateway counts as gone. Until then the requests of one that is gone take places
here for nothing. But if one was only stopped and its requests were ended, their prompts would be computed again."""

FAREWELL_SECONDS = 1.0
"""For the last words to a gateway; below the time that Serve leaves after `patience` (`app.HAND_OVER_SECONDS`)."""


class Port:
    """Listens for gateways, those that know its secret: gives their requests to the engine, its steps' updates to them,
    and tells all of them what the cache holds and how busy the engine is.

    Args:
        name: of the shard.
        report_s: seconds between two reports of the load.
        silence: seconds without a word after which a gateway is given up.

    Attributes:
        introduced: called with where the model's shards give KV blocks, when a gateway says it.
        inherits: called with the name of a shard that is about to leave, whose hot blocks are to come here.
        brings: called with the name of a shard and hashes of blocks that are to come from there.
    """

    def __init__(self, engine: ServedEngine, name: str, report_s: float, silence: float = GATEWAY_SILENCE) -> None:
        self.engine = engine
        self.name = name
        self.silence = silence
        self.leaving = False
        self.introduced: Callable[[dict[str, Address]], None] = lambda addresses: None
        self.inherits: Callable[[str], None] = lambda name: None
        self.brings: Callable[[str, list[bytes]], None] = lambda name, hashes: None
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self.peers: dict[Channel, _Peer] = {}
        self.feed = Feed(engine.engine, report_s, self.peers.keys())
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def model(self) -> ModelInfo:
        """What a gateway must know about the model to validate and route requests."""
        engine = self.engine.engine
        limits = engine.limits
        return ModelInfo(
            self.engine.name,
            limits.max_model_len,
            limits.vocab_size,
            engine.config.block_size,
            limits.tasks,
            limits.pooling,
        )

    async def open(self, host: str) -> Address:
        """Listen on one of this machine's addresses, at a port that the system chooses."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, 0)
        self._watching = loop.create_task(self._watch())
        self.feed.open()
        self.engine.on_change = lambda: loop.call_soon_threadsafe(self._changed)
        port: int = self._server.sockets[0].getsockname()[1]
        return Address(host, port, self.secret.hex())

    async def leave(self, patience: float) -> None:
        """Take no more requests, wait for those that run, and after `patience` seconds hand over what is left."""
        self.leaving = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while any(peer.open_sequences or peer.held for peer in self.peers.values()):
                    await asyncio.sleep(0.05)
        self.feed.close()
        if self._watching is not None:
            self._watching.cancel()
        if self._server is not None:
            self._server.close()
        for channel in list(self.peers):
            channel.send(Leaving())
            channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                while self.peers:  # what is sent has to arrive before the process ends
                    await asyncio.sleep(0.01)
        for channel in list(self.peers):  # one that does not read
            channel.abort()

    @property
    def lives(self) -> bool:
        """Whether the engine would take a request."""
        try:
            self.engine.check_health()
        except EngineDead:
            return False
        return True

    def take_over(self, request_id: str) -> None:
        """A request comes again over a new connection, before the end of the one it came over was heard of."""
        for peer in self.peers.values():
            if peer.open_sequences.pop(request_id, None) is not None:
                self.engine.abort(request_id)

    def courses(self, asked: AskCourses) -> Courses:
        """Where a request's time went, and how a block left; takes some milliseconds where the logs are full."""
        engine = self.engine.engine
        gone = engine.pool.gone.find(asked.block)
        how = None if gone is None else (engine.clock() - gone.time, gone.taker)
        return Courses(asked.request_id, engine.courses(asked.request_id), how)

    def manage(self, asked: Manage) -> Future[str] | Future[None]:
        """Begin to do something with the model's weights."""
        engine = self.engine
        match asked.do:
            case "sleep":
                return engine.sleep(asked.level)
            case "wake_up":
                return engine.wake_up()
            case "stage":
                return engine.stage(asked.path)
            case "unstage":
                return engine.unstage()
            case "switch":
                return engine.switch()

    def _changed(self) -> None:
        """Tell all gateways what the model does now."""
        if self.leaving:
            return
        self.feed.follow(self.engine.engine)
        for channel in list(self.peers):
            channel.send(self.weights)

    @property
    def weights(self) -> Weights:
        """What the model does now."""
        return Weights(self.engine.phase, self.engine.level, self.model)

    def _accept(self) -> Channel:
        return _Peer(self, asyncio.get_running_loop()).channel

    async def _watch(self) -> None:
        """Leave the gateways when the engine does not live, and each that has fallen silent."""
        awake = 0.0
        while True:
            lives = self.lives
            for channel in list(self.peers):
                if not lives or channel.silent_for(awake) > self.silence:
                    channel.abort()
            before = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)
            awake = min(time.monotonic() - before, 2 * BEAT_SECONDS)


class _Peer:
    """One connected gateway: the engine's `Listener` for all of its requests."""

    def __init__(self, port: Port, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.channel = Channel(
            TO_SHARD, self._receive, self._lost, self._made, Challenge(port.secret, opens=False)
        )  # fmt: skip
        self.open_sequences: dict[str, int] = {}
        self.held: dict[str, list[SequenceUpdate]] = {}  # by request: what is sent after its prompt's numbers
        self._arriving = Arriving()
        self._port = port

    def updated(self, updates: list[SequenceUpdate]) -> None:
        long = len(updates) > FEW_UPDATES
        for update in updates:
            if update.finish_reason is not None:
                self._ended(update.request_id)
            if update.logprobs is not None or update.prompt_logprobs is not None or update.pooled is not None:
                long = True
            if (packed := update.prompt_logprobs) is not None and packed.num_values > PART_VALUES:
                self._hold(update.request_id, packed)
                update.prompt_logprobs = None
        if self.held:
            updates = self._not_held(updates)
        if long:
            for step in steps(updates):
                self.channel.send(step)
        elif updates:
            self.channel.send(Step(updates))

    def _hold(self, request_id: str, packed: PackedLogprobs) -> None:
        """Send a prompt's numbers in parts, and what else is said of the request after them."""
        held = self.held[request_id] = []

        def parts() -> Iterator[bytes]:
            for part in logprob_parts(request_id, packed):
                if self.held.get(request_id) is not held:  # nobody wants it any more
                    return
                yield part
            if self.held.get(request_id) is held:
                del self.held[request_id]
                yield from map(encode, steps(held))

        self.channel.send_in_parts(parts())

    def _not_held(self, updates: list[SequenceUpdate]) -> list[SequenceUpdate]:
        for update in updates:
            if (held := self.held.get(update.request_id)) is not None:
                held.append(update)
        return [update for update in updates if update.request_id not in self.held]

    def failed(self, request_id: str, error: Exception) -> None:
        self.open_sequences.pop(request_id, None)
        self.held.pop(request_id, None)
        self.channel.send(Refusal.of(request_id, error))

    def _made(self) -> None:
        if not self._port.lives or self._port.leaving:
            self.channel.abort()
            return
        self._port.peers[self.channel] = self
        self.channel.send(Hello(self._port.name, self._port.model))
        if self._port.engine.phase != "awake":
            self.channel.send(self._port.weights)

    def _ended(self, request_id: str) -> None:
        left = self.open_sequences.get(request_id, 1) - 1
        if left:
            self.open_sequences[request_id] = left
        else:
            self.open_sequences.pop(request_id, None)

    def _receive(self, message: ToShard) -> None:
        match message:
            case Submit():
                self._submit(message)
            case RequestPart():
                self._arriving.add(message)
            case Abort():
                self._abort(message)
            case Ask():
                self._port.feed.answer(self.channel, message)
            case AskStatistics():
                self.channel.send(Statistics(self._port.engine.stats()))
            case AskCourses():
                self.channel.send(self._port.courses(message))
            case PeerAddresses():
                self._port.introduced(message.addresses)
            case Inherit():
                self._port.inherits(message.shard)
            case Bring():
                self._port.brings(message.shard, message.hashes)
            case Manage():
                done = self._port.manage(message)
                done.add_done_callback(lambda done: self.loop.call_soon_threadsafe(self._managed, message.ticket, done))

    def _managed(self, ticket: int, done: Future[str] | Future[None]) -> None:
        error = done.exception()
        if isinstance(error, Exception):
            self.channel.send(Managed(ticket, error=Refusal.of("", error)))
        else:
            self.channel.send(Managed(ticket, done.result() or ""))

    def _abort(self, message: Abort) -> None:
        if message.index is None:
            self.held.pop(message.request_id, None)
            self._arriving.drop(message.request_id)
        self._port.engine.abort(message.request_id, message.index)

    def _submit(self, message: Submit) -> None:
        request = self._arriving.complete(message.request)
        if self._port.leaving:
            self.channel.send(Refusal.of(request.request_id, EngineDead("this shard is leaving")))
            return
        self._port.take_over(request.request_id)
        emitted = request.emitted or [[]] * request.params.num_sequences
        self.open_sequences[request.request_id] = sum(tokens is not None for tokens in emitted)
        try:
            self._port.engine.submit(request, self)
        except EngineDead as error:
            self.failed(request.request_id, error)

    def _lost(self) -> None:
        self._port.peers.pop(self.channel, None)
        for request_id in self.open_sequences:
            self._port.engine.abort(request_id)
        self.open_sequences.clear()
        self.held.clear()
