"""The wire between a gateway and a shard: one TCP connection, MessagePack records, one message per engine step.

A gateway connects to each shard it has requests for. It sends `Submit` and `Abort`; the shard answers with one `Step`
for all of the gateway's sequences that a step touched, `Refusal` for a request it does not take (or loses), `Beat`
while its engine lives, and `Leaving` before it goes. The end of the connection is the end of the other side's interest:
a shard then aborts what that gateway had sent, a gateway takes its streams elsewhere.

Why not a Serve handle call per request that streams its tokens: Serve sends every token of every request by itself,
0.2 ms of CPU each, where a message for 64 sequences costs 0.1 ms at both ends together; and a killed process shows on
a socket at once, on a handle call when Ray has found out (docs/serve_cost.md). Why not ZeroMQ: it hides just that end.

The first thing that a gateway sends is the shard's secret, which it knows from the shard's metadata in Serve: that is
behind Ray's token. Whoever does not know it is not listened to, and cannot make a shard keep more than one read.

Records are plain data: nothing that comes from the wire is executed.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from octavo import errors
from octavo.errors import OctavoError
from octavo.request import Request, SequenceUpdate

logger = logging.getLogger("ray.serve")

MAX_UNREAD = 64 * 2**20
"""Bytes that may wait for a peer that does not read; it is then given up. A token takes about 200."""

_LENGTH = 4

SECRET_BYTES = 32
INTRODUCTION_SECONDS = 5.0  # a connection whose other side has not said the secret by then is ended


class Address(NamedTuple):
    """Where a shard listens, and what it wants to hear first (hexadecimal)."""

    host: str
    port: int
    secret: str


class ShardAddresses(NamedTuple):
    """What a shard tells Serve of itself once, and Serve to every gateway.

    Attributes:
        port: where requests go.
        feed: where `octavo_serve.feed` listens, with its secret.
    """

    port: Address
    feed: str

    def as_metadata(self) -> dict[str, Any]:
        """For Serve's `record_replica_metadata`."""
        return self._asdict()

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ShardAddresses:
        return cls(Address(*metadata["port"]), metadata["feed"])


class Submit(msgspec.Struct, tag=True):
    """Run this request."""

    request: Request


class Abort(msgspec.Struct, tag=True):
    """End a request, or one of its sequences; an id that is not known has just ended."""

    request_id: str
    index: int | None = None


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


class Beat(msgspec.Struct, tag=True):
    """The engine lives."""


class Leaving(msgspec.Struct, tag=True):
    """The shard is about to end: nothing more comes, what has not ended goes on elsewhere."""


ToShard = Submit | Abort
ToGateway = Step | Refusal | Beat | Leaving

_encoder = msgspec.msgpack.Encoder()
TO_SHARD: msgspec.msgpack.Decoder[ToShard] = msgspec.msgpack.Decoder(ToShard)
TO_GATEWAY: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)


class Channel(asyncio.Protocol):
    """One end of a connection: whole messages out and in, each behind its length.

    Args:
        decoder: of what the other side sends.
        receive: called with each message.
        lost: called when no more can come.
        made: called when the other side is there, and has said the secret.
        secret: what the other side has to send first; None listens to everybody.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Any],
        receive: Callable[[Any], None],
        lost: Callable[[], None],
        made: Callable[[], None] | None = None,
        secret: bytes | None = None,
    ) -> None:
        self._decoder = decoder
        self._receive = receive
        self._lost = lost
        self._made = made
        self._secret = secret
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def send(self, message: ToShard | ToGateway) -> None:
        """Send without waiting; a peer that has stopped reading is given up."""
        if self._transport is None or self._transport.is_closing():
            return
        self._write(_encoder.encode(message))
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            logger.error("The other side has stopped reading; its connection is given up")
            self._transport.abort()

    def introduce(self, secret: bytes) -> None:
        """Say the other side's secret."""
        self._write(secret)

    def _write(self, payload: bytes) -> None:
        if self._transport is not None:
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
        if self._secret is not None:
            asyncio.get_running_loop().call_later(INTRODUCTION_SECONDS, self._end_if_strange)
        elif self._made is not None:
            self._made()

    def _end_if_strange(self) -> None:
        if self._secret is not None:
            self.abort()

    def _is_known(self, secret: bytes | bytearray) -> bool:
        if self._secret is None or not hmac.compare_digest(secret, self._secret):
            return False
        self._secret = None
        if self._made is not None:
            self._made()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        if self._secret is not None:
            start = _LENGTH + len(self._secret)
            if len(buffer) < start:
                return
            if not self._is_known(buffer[_LENGTH:start]):
                self.abort()
                return
        while len(buffer) - start >= _LENGTH:
            end = start + _LENGTH + int.from_bytes(buffer[start : start + _LENGTH], "big")
            if len(buffer) < end:
                break
            message = bytes(buffer[start + _LENGTH : end])
            start = end
            try:
                self._receive(self._decoder.decode(message))
            except msgspec.MsgspecError:
                logger.exception("What came on a connection is none of our messages; the connection is given up")
                self.abort()
                return
        del buffer[:start]
