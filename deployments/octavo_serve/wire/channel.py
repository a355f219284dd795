"""The wire between a gateway and a shard: one TCP connection that carries all they say to each other.

A gateway holds a connection to each shard. Both prove that they know the shard's secret (`challenge`); then each sends
`messages` behind their length. The secret is the shard's own, made when it starts: nothing about it is in a config, and
who learns one shard's can speak to no other.

What is large goes in parts (`parts`), each sent once those before it have left: what is sent meanwhile overtakes them.
A peer is not waited for. One that leaves MAX_UNREAD bytes unread and reads nothing for STUCK_SECONDS is given up.

The end of the connection is the end of the other side's interest: a shard then aborts what that gateway had sent, a
gateway takes its streams elsewhere. A shard whose engine does not live ends its connections. One rule of liveness holds
in both directions (`silent_for`): who says nothing for some seconds of the listener's waking time is gone.

Why not a Serve handle call per request that streams its tokens: Serve sends every token of every request by itself,
0.2 ms of CPU each, where a message for 64 sequences costs 0.1 ms at both ends together; and a killed process shows on
a socket at once, on a handle call when Ray has found out (docs/serve_cost.md). Why not ZeroMQ: it hides just that end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec

from octavo_serve.wire.challenge import Challenge, Stranger
from octavo_serve.wire.messages import MAX_MESSAGE, ToGateway, ToShard, encode

logger = logging.getLogger("ray.serve")

MAX_UNREAD = 64 * 2**20
"""Bytes that may wait for a peer; one that then reads nothing for STUCK_SECONDS is given up. A token takes 200."""

MOST_UNREAD = 4 * MAX_UNREAD
"""Bytes that never wait, however fast the peer reads."""

STUCK_SECONDS = 10.0

_LENGTH = 4

INTRODUCTION_SECONDS = 5.0  # a connection whose other side has not proved by then that it knows the secret is ended


class Channel(asyncio.Protocol):
    """One end of a connection: whole messages out and in.

    Args:
        decoder: of what the other side sends.
        receive: called with each message.
        lost: called when no more can come.
        made: called when both sides have proved that they know the secret.
        challenge: how they do.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Any],
        receive: Callable[[Any], None],
        lost: Callable[[], None],
        made: Callable[[], None],
        challenge: Challenge,
    ) -> None:
        self._decoder = decoder
        self._receive = receive
        self._lost = lost
        self._made = made
        self._challenge = challenge
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._written = self._read = 0  # bytes, by this side and by the other
        self._progress = 0.0  # when the latter was seen to grow
        self._soon = bytearray()  # what goes in this turn of the event loop
        self._in_parts: deque[Iterator[bytes]] = deque()  # a part of each in turn
        self._has_room = True
        self._silent = 0.0

    @property
    def unread(self) -> int:
        """Bytes that wait for the other side to read them."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, message: ToShard | ToGateway) -> None:
        """Send without waiting; a peer that has stopped reading is given up."""
        if self.is_open:
            self.send_encoded(encode(message))

    def send_encoded(self, message: bytes) -> None:
        """The same for a message that several are sent."""
        if not self.is_open:
            return
        if self.unread > MAX_UNREAD and self._is_stuck():
            logger.error("The other side has stopped reading; its connection is given up")
            self.abort()
            return
        self._write(message)

    def send_soon(self, message: ToShard | ToGateway) -> None:
        """The same, together with what else is sent in this turn of the event loop: 64 requests are one call of the
        system then, each of which takes as long as the rest of sending one."""
        if not self.is_open:
            return
        payload = encode(message)
        if not self._soon:
            asyncio.get_running_loop().call_soon(self._send_now)
        self._soon += len(payload).to_bytes(_LENGTH, "big") + payload

    def _send_now(self) -> None:
        if self._soon and self.is_open:
            self.send_encoded(b"")

    def send_in_parts(self, parts: Iterator[bytes]) -> None:
        """Send encoded messages one by one, each once most of what was sent before it has left.

        Args:
            parts: asked for the next one only then; all that it gives are sent in its order.
        """
        self._in_parts.append(parts)
        if len(self._in_parts) == 1:
            self._send_part()

    def _send_part(self) -> None:
        while self._in_parts and self._has_room and self.is_open:
            parts = self._in_parts.popleft()
            if (part := next(parts, None)) is not None:
                self._in_parts.append(parts)
                self.send_encoded(part)
                asyncio.get_running_loop().call_soon(self._send_part)  # others take their turn in between
                return

    def pause_writing(self) -> None:
        """The transport holds as much as it should."""
        self._has_room = False

    def resume_writing(self) -> None:
        """It has room again."""
        self._has_room = True
        self._send_part()

    def silent_for(self, more: float) -> float:
        """Seconds since the other side last said something, once `more` of them have passed.

        Callers count in steps, each at most so long as they meant to sleep: a process that was stopped itself has not
        listened, and what was said meanwhile has yet to be read.
        """
        self._silent += more
        return self._silent

    def _is_stuck(self) -> bool:
        """Whether the other side makes no progress, or is too far behind."""
        read, now = self._written - self.unread, time.monotonic()
        if read > self._read:
            self._read, self._progress = read, now
        return now - self._progress > STUCK_SECONDS or self.unread > MOST_UNREAD

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def _write(self, payload: bytes) -> None:
        if self._transport is None:
            return
        frame = len(payload).to_bytes(_LENGTH, "big") + payload if payload else b""
        if self._soon:
            frame, self._soon = bytes(self._soon) + frame, bytearray()
        self._written += len(frame)
        self._transport.write(frame)

    def close(self) -> None:
        """End the connection once everything is sent."""
        self._send_now()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        asyncio.get_running_loop().call_later(INTRODUCTION_SECONDS, self._end_if_strange)
        if first := self._challenge.first:
            self._write(first)

    def _end_if_strange(self) -> None:
        if self._challenge.expected:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._soon.clear()
        self._in_parts.clear()
        self._lost()

    def data_received(self, data: bytes) -> None:
        self._silent = 0.0
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH and self.is_open:
                length = int.from_bytes(buffer[start : start + _LENGTH], "big")
                self._check_length(length)
                end = start + _LENGTH + length
                if len(buffer) < end:
                    break
                message = bytes(buffer[start + _LENGTH : end])
                start = end
                if self._challenge.expected:
                    self._prove(message)
                else:
                    self._receive(self._decoder.decode(message))
        except Stranger:
            self.abort()
        except msgspec.MsgspecError:
            logger.exception("What came on a connection is none of our messages; the connection is given up")
            self.abort()
        del buffer[:start]

    def _check_length(self, length: int) -> None:
        if (expected := self._challenge.expected) and length != expected:
            raise Stranger
        if length > MAX_MESSAGE:
            raise msgspec.DecodeError(f"a message of {length} bytes")

    def _prove(self, word: bytes) -> None:
        if answer := self._challenge.answer(word):
            self._write(answer)
        if not self._challenge.expected:
            self._made()
