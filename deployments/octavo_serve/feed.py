"""The feed: what a shard's cache holds and how busy it is, from the shard to every router, many times a second.

One ZeroMQ ROUTER socket per shard, one DEALER per router and shard, both in threads of their own, so that neither an
engine nor an event loop ever waits for them. A router says hello four times a second; the shard sends those that did
lately

    Update  numbered block events, as they come (at most every FLUSH_SECONDS); its load, every `report_s`; tickets
            of requests that the load counts for the first time; and, answering a hello, the hello's own time
    Part    a piece of a snapshot, to whoever says that it needs one

On one connection everything comes in order, so a router that sees its own hello's time has taken in all that was said
before the hello was read: the age of its knowledge, by its own clock. Messages to a router that does not read are
dropped past HIGH_WATER of them; it finds the gap and asks for a snapshot, at most every SNAPSHOT_SECONDS.

Only a hello with the shard's secret is answered; routers know it from the shard's address, which Serve gives them
behind Ray's token.

Serve's own ways were no match: `record_routing_stats` is polled once a second or so and every change goes to every
router by way of the controller. Figures are in docs/routing.md.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import os
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import msgspec
import zmq

from octavo.block_hash import HASH_BYTES
from octavo.engine.engine import Engine
from octavo.kvcache.events import BlockEvent
from octavo.load import ShardState
from octavo.routing.index import Change
from octavo.routing.router import Router
from octavo_serve.channel import SECRET_BYTES

logger = logging.getLogger("ray.serve")

FLUSH_SECONDS = 0.01
"""Shortest time between two messages about blocks: below the step of any but the smallest models."""

HELLO_SECONDS = 0.25
SNAPSHOT_SECONDS = 0.5
FORGET_SECONDS = 5.0
"""A router that said no hello for so long is gone."""

HIGH_WATER = 1000
"""Messages kept for a peer that does not read; at 100 a second of about 1 kB, ten seconds and 1 MB."""

LARGEST_HELLO = 4096
"""Bytes; who sends more is disconnected before it is kept."""

PART = 4096
"""Hashes in one message: 64 KiB, a millisecond to take in."""


class Hello(msgspec.Struct, array_like=True):
    """Router to shard.

    Attributes:
        shard: whom it believes to speak to; an address can have a new owner.
        time: of the router's clock.
        snapshot: whether it needs one.
        secret: of the shard.
    """

    shard: str
    time: float
    snapshot: bool
    secret: str


class Update(msgspec.Struct, array_like=True, tag="u"):
    """Shard to router.

    Attributes:
        first: number of the first change, or of the next one there will be.
        changes: kind and hashes, joined.
        tickets: of requests that `state` counts for the first time.
        echo: the time of the hello that this answers.
    """

    first: int
    changes: list[tuple[Literal["stored", "removed", "cleared"], bytes]] = []
    state: ShardState | None = None
    tickets: list[str] = []
    echo: float | None = None


class Part(msgspec.Struct, array_like=True, tag="p"):
    """Shard to router: part `index` of `count` of the snapshot at event number `sequence`."""

    sequence: int
    index: int
    count: int
    hashes: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_hello = msgspec.msgpack.Decoder(Hello).decode
_decode_news = msgspec.msgpack.Decoder(Update | Part).decode


class _Thread:
    """A thread around a poller that others can wake up."""

    def __init__(self, name: str) -> None:
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def wake(self) -> None:
        """Have the thread look around; from any thread, never blocks."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """End the thread and its sockets; a second call does nothing."""
        if self._closing:
            return
        self._closing = True
        self.wake()
        self._thread.join()
        os.close(self._wake_fd)

    def _main(self) -> None:
        try:
            self._run()
        except Exception:
            logger.exception("%s has stopped; routers go on by load", self._thread.name)
        finally:
            self._context.destroy(linger=0)

    def _run(self) -> None:
        raise NotImplementedError

    def _poll(self, seconds: float) -> list[zmq.Socket[bytes]]:
        """Sockets with something to read, after at most so long."""
        ready = dict(self._poller.poll(max(0, math.ceil(seconds * 1000))))
        if ready.pop(self._wake_fd, None):
            os.eventfd_read(self._wake_fd)
        return list(ready)


class FeedPublisher(_Thread):
    """A shard's end.

    Args:
        shard: its name.
        engine: whose events, load and tickets are sent.
        host: address of this machine that routers reach.
        report_s: seconds between two reports of the load.
        port: 0 takes a free one.

    Attributes:
        address: where routers connect, and behind # what they say there.
    """

    def __init__(self, shard: str, engine: Engine, host: str, report_s: float, port: int = 0) -> None:
        super().__init__("octavo-feed")
        self._shard, self._engine, self._report_s = shard, engine, report_s
        self._secret = secrets.token_hex(SECRET_BYTES)
        self._peers: dict[bytes, float] = {}  # identity -> last hello
        self._next = 0  # number of the next event to send
        self._state: ShardState | None = None  # sent last
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_HELLO)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a full or vanished peer is an error here, not silence
        self._socket.setsockopt(zmq.IPV6, int(":" in host))
        self._socket.bind(f"tcp://{f'[{host}]' if ':' in host else host}:{port or '*'}")
        self.address = f"{self._socket.getsockopt_string(zmq.LAST_ENDPOINT)}#{self._secret}"
        self._poller.register(self._socket, zmq.POLLIN)
        engine.pool.events.on_first = self.wake
        self._thread.start()

    def _run(self) -> None:
        flushed = reported = 0.0
        waiting = False  # events came too soon after the last message
        while not self._closing:
            now = time.monotonic()
            ready = self._poll(min(reported + self._report_s, flushed + FLUSH_SECONDS if waiting else now + 1) - now)
            if self._socket in ready:
                self._read_hellos()
            now = time.monotonic()
            due = now - reported >= self._report_s
            if due or now - flushed >= FLUSH_SECONDS:
                self._flush(due)
                flushed, reported, waiting = now, now if due else reported, False
            else:
                waiting = True

    def _flush(self, report: bool) -> None:
        """Send what happened to everybody."""
        events = self._engine.pool.events.take()
        runs = [list(run) for _, run in groupby(enumerate(events), lambda pair: pair[1].sequence - pair[0])]
        updates = [_update([event for _, event in run]) for run in runs]  # more than one if the log overflowed
        self._next = events[-1].sequence + 1 if events else self._next
        now = time.monotonic()
        self._peers = {peer: heard for peer, heard in self._peers.items() if now - heard < FORGET_SECONDS}
        if report and (news := self._report()) is not None:
            updates.append(news)
        for message in map(_encode, updates if self._peers else ()):
            for peer in list(self._peers):
                self._send(peer, message)

    def _report(self) -> Update | None:
        """The load, if it changed."""
        named = self._engine.tickets  # emptied before the state is read, which then counts them
        tickets = [named.popleft() for _ in range(len(named))]
        state = self._engine.scheduler.state() if self._peers else self._state
        if state == self._state and not tickets:
            return None
        self._state = state
        return Update(self._next, state=state, tickets=tickets)

    def _read_hellos(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
                with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                    self._answer(peer, _decode_hello(b"".join(frames)))

    def _answer(self, peer: bytes, hello: Hello) -> None:
        if hello.shard != self._shard or not hmac.compare_digest(hello.secret.encode(), self._secret.encode()):
            return
        self._flush(report=False)  # so that the answer's number is the next one this peer has to see
        self._peers[peer] = time.monotonic()
        if not hello.snapshot:
            self._send(peer, _encode(Update(self._next, echo=hello.time)))
            return
        sequence, hashes = self._engine.pool.snapshot()
        count = max(1, -(-len(hashes) // PART))
        for index in range(count):
            part = b"".join(hashes[index * PART : (index + 1) * PART])
            self._send(peer, _encode(Part(sequence, index, count, part)))
        self._send(peer, _encode(Update(sequence, state=self._engine.scheduler.state(), echo=hello.time)))

    def _send(self, peer: bytes, message: bytes) -> None:
        try:
            self._socket.send_multipart((peer, message), zmq.NOBLOCK)
        except zmq.Again:
            pass  # it does not read: it will find the gap
        except zmq.ZMQError:
            self._peers.pop(peer, None)  # it is gone


def _update(events: list[BlockEvent]) -> Update:
    return Update(events[0].sequence, [(event.kind, b"".join(event.hashes)) for event in events])


@dataclass(slots=True, eq=False)
class _Line:
    """A router's connection to one shard."""

    name: str
    secret: str
    socket: zmq.Socket[bytes]
    asked: float = field(default=-1e9)  # when for a snapshot


class FeedSubscriber(_Thread):
    """A router's end: keeps `Router` informed of every shard it is told to listen to."""

    def __init__(self, router: Router) -> None:
        super().__init__("octavo-feed")
        self._router = router
        self._wishes: deque[tuple[str, str | None]] = deque()
        self._lines: dict[str, _Line] = {}
        self._thread.start()

    def listen(self, shard: str, address: str) -> None:
        """Connect to a shard; from any thread."""
        self._wishes.append((shard, address))
        self.wake()

    def leave(self, shard: str) -> None:
        """Disconnect from a shard; from any thread."""
        self._wishes.append((shard, None))
        self.wake()

    def _run(self) -> None:
        greeted = 0.0
        while not self._closing:
            ready = self._poll(greeted + HELLO_SECONDS - time.monotonic())
            for line in list(self._lines.values()):
                if line.socket in ready:
                    self._read(line)
            while self._wishes:
                self._carry_out(*self._wishes.popleft())
            if time.monotonic() - greeted >= HELLO_SECONDS:
                greeted = time.monotonic()
                for line in self._lines.values():
                    self._greet(line)

    def _carry_out(self, shard: str, address: str | None) -> None:
        line = self._lines.pop(shard, None)
        if line is not None:
            self._poller.unregister(line.socket)
            line.socket.close(linger=0)
        if address is not None:
            socket = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
            socket.setsockopt(zmq.SNDHWM, 4)  # hellos of a quarter of a second each
            socket.setsockopt(zmq.IPV6, int("[" in address))
            endpoint, _, secret = address.partition("#")
            socket.connect(endpoint)
            self._poller.register(socket, zmq.POLLIN)
            self._lines[shard] = _Line(shard, secret, socket)
            self._greet(self._lines[shard])

    def _greet(self, line: _Line) -> None:
        now = time.monotonic()
        shard = self._router.shards.get(line.name)
        needs = shard is not None and not shard.blocks.exact and now - line.asked >= SNAPSHOT_SECONDS
        with contextlib.suppress(zmq.Again):
            line.socket.send(_encode(Hello(line.name, now, needs, line.secret)), zmq.NOBLOCK)
            line.asked = now if needs else line.asked

    def _read(self, line: _Line) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                message = line.socket.recv(zmq.NOBLOCK)
                with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                    self._take_in(line, _decode_news(message))

    def _take_in(self, line: _Line, news: Update | Part) -> None:
        shard = self._router.shards.get(line.name)
        if shard is None:
            return
        if isinstance(news, Part):
            shard.blocks.part(news.sequence, news.index, news.count, _split(news.hashes))
            return
        exact = shard.blocks.exact
        changes: list[Change] = [(kind, _split(hashes)) for kind, hashes in news.changes]
        shard.blocks.changes(news.first, changes)
        self._router.heard(line.name, news.state, news.tickets, news.echo)
        if exact and not shard.blocks.exact:
            self._greet(line)


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
