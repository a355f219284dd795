"""The wire between a gateway and a shard: one TCP connection that carries all they say to each other.

A gateway holds a connection to each shard. Both prove that they know the shard's secret (`challenge`), and the shard
says `Hello`: who it is and what its model takes. Then

    gateway   Submit, Abort; Ask, four times a second
    shard     Step      what one engine step did to all of the gateway's sequences
              Refusal   a request it does not take, or loses
              Blocks    numbered changes of its prefix cache; Snapshot, in parts, to who asks for it
              Report    its load when that changed, and an answer to each Ask; at least one a second
              Leaving   before it goes

Everything comes in order, so a gateway that sees its own Ask's time again has taken in all that was said before. The
end of the connection is the end of the other side's interest: a shard then aborts what that gateway had sent, a gateway
takes its streams elsewhere. A shard whose engine does not live ends its connections, and one that says nothing for
`shard_silence_s` is gone: that is the only rule of liveness.

Why not a Serve handle call per request that streams its tokens: Serve sends every token of every request by itself,
0.2 ms of CPU each, where a message for 64 sequences costs 0.1 ms at both ends together; and a killed process shows on
a socket at once, on a handle call when Ray has found out (docs/serve_cost.md). Why not ZeroMQ: it hides just that end.

Records are plain data: nothing that comes from the wire is executed. Messages are MessagePack behind their length.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from octavo import errors
from octavo.errors import OctavoError
from octavo.load import ShardState
from octavo.request import Request, SequenceUpdate
from octavo.routing.index import Kind
from octavo_serve.api.model import ModelInfo
from octavo_serve.wire.challenge import Challenge, Stranger

logger = logging.getLogger("ray.serve")

MAX_UNREAD = 64 * 2**20
"""Bytes that may wait for a peer; one that then reads nothing for STUCK_SECONDS is given up. A token takes 200."""

STUCK_SECONDS = 10.0

MAX_MESSAGE = 256 * 2**20
"""Bytes of one message; who announces a longer one is given up before it is read. The log probabilities of a prompt, of
which a request may ask for `bounds.MAX_PROMPT_VALUES`, are one, and take up to 50 bytes each."""

BEAT_SECONDS = 1.0
"""Longest time between two messages of a shard whose engine lives."""

_LENGTH = 4

INTRODUCTION_SECONDS = 5.0  # a connection whose other side has not proved by then that it knows the secret is ended


class Address(NamedTuple):
    """Where a shard listens, and the secret that both ends must know (hexadecimal).

    A shard tells it Serve as its metadata, and Serve the gateways: behind Ray's token.
    """

    host: str
    port: int
    secret: str

    def as_metadata(self) -> dict[str, Any]:
        """For Serve's `record_replica_metadata`."""
        return self._asdict()

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Address:
        return cls(metadata["host"], metadata["port"], metadata["secret"])


class Submit(msgspec.Struct, tag=True):
    """Run this request."""

    request: Request


class Abort(msgspec.Struct, tag=True):
    """End a request, or one of its sequences; an id that is not known has just ended."""

    request_id: str
    index: int | None = None


class Ask(msgspec.Struct, tag=True):
    """A gateway is there.

    Attributes:
        time: of its clock; the answering Report brings it back.
        snapshot: whether it needs one.
    """

    time: float
    snapshot: bool = False


class Hello(msgspec.Struct, tag=True):
    """The shard's first message: its name, and what a request must keep to."""

    shard: str
    model: ModelInfo


class Step(msgspec.Struct, tag=True):
    """What one step did to the gateway's sequences."""

    updates: list[SequenceUpdate]


class Refusal(msgspec.Struct, tag=True):
    """An error of `octavo.errors` ended the request, or kept it from starting."""

    request_id: str
    kind: str
    arguments: tuple[str | float | None, ...]

    @classmethod
    def of(cls, request_id: str, error: Exception) -> Refusal:
        if isinstance(error, OctavoError) and type(error) is getattr(errors, type(error).__name__, None):
            return cls(request_id, type(error).__name__, error.args)
        return cls(request_id, OctavoError.__name__, (f"{type(error).__name__}: {error}",))

    def error(self) -> OctavoError:
        """The error as it was raised."""
        kind: type[OctavoError] = getattr(errors, self.kind, OctavoError)
        return kind(*self.arguments)


class Blocks(msgspec.Struct, tag=True):
    """Changes of the prefix cache, `first` the number of the first; each a kind and the hashes, joined."""

    first: int
    changes: list[tuple[Kind, bytes]]


class Snapshot(msgspec.Struct, tag=True):
    """Part `index` of `count` of the prefix cache as it was at change number `sequence`."""

    sequence: int
    index: int
    count: int
    hashes: bytes


class Report(msgspec.Struct, tag=True):
    """The engine lives.

    Attributes:
        next: number of the next change there will be.
        state: if it changed.
        tickets: of requests that `state` counts for the first time.
        echo: time of the Ask that this answers.
    """

    next: int
    state: ShardState | None = None
    tickets: list[str] = []
    echo: float | None = None


class Leaving(msgspec.Struct, tag=True):
    """The shard is about to end: nothing more comes, what has not ended goes on elsewhere."""


ToShard = Submit | Abort | Ask
ToGateway = Hello | Step | Refusal | Blocks | Snapshot | Report | Leaving

encode = msgspec.msgpack.Encoder().encode
TO_SHARD: msgspec.msgpack.Decoder[ToShard] = msgspec.msgpack.Decoder(ToShard)
TO_GATEWAY: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)


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

    def _is_stuck(self) -> bool:
        """Whether the other side makes no progress, or is further behind than any message explains."""
        read, now = self._written - self.unread, time.monotonic()
        if read > self._read:
            self._read, self._progress = read, now
        return now - self._progress > STUCK_SECONDS or self.unread > MAX_UNREAD + MAX_MESSAGE

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def _write(self, payload: bytes) -> None:
        if self._transport is not None:
            self._written += _LENGTH + len(payload)
            self._transport.write(len(payload).to_bytes(_LENGTH, "big") + payload)

    def close(self) -> None:
        """End the connection once everything is sent."""
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
        self._lost()

    def data_received(self, data: bytes) -> None:
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
