"""How a shard asks another one for KV blocks: a TCP connection, on which one question at a time is answered.

    asker                                       giver
        challenge, as between a gateway and a shard, with a secret that is good for nothing else
                                        <──────     Form: what its blocks are
        Wanted: hashes, at most a lot   ──────>
                                        <──────     how many of the first ones follow, 4 bytes
                                        <──────     of each: checksum 16, bytes
        Hottest: how many               ──────>
                                        <──────     Wanted: their hashes

Both ends are threads over blocking sockets: blocks are megabytes, and none of them is on an event loop. Every wait has
an end, and every length is known before it comes. The checksum is a tier's on a disk: SHA-256 over hash and bytes, cut
to 16 bytes, 2 GB/s a thread.

An asker trusts who knows the secret as it trusts its own disk: what was damaged, cut or is of another form is seen; who
computes wrong blocks on purpose is not.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.block_hash import HASH_BYTES
from octavo_serve.wire.challenge import Challenge, Stranger

MAX_WANTED = 4096
"""Hashes in a question."""

MAX_WORDS = 2**17
"""Bytes of any message that is not a block."""

_LENGTH = 4

Broken = OSError, Stranger, msgspec.MsgspecError
"""What ends a connection."""


class Form(msgspec.Struct):
    """What a shard's blocks are.

    Attributes:
        name: of the layout, the model and the machine (`octavo.engine.disk_cache.block_form`).
        block_bytes: of each.
    """

    name: str
    block_bytes: int


class Wanted(msgspec.Struct, tag=True):
    """Blocks that are asked for, or worth it: their hashes, joined."""

    hashes: bytes

    def split(self) -> list[bytes]:
        """The hashes.

        Raises:
            ConnectionError: they are too many, or not whole.
        """
        if len(self.hashes) > MAX_WANTED * HASH_BYTES or len(self.hashes) % HASH_BYTES:
            raise ConnectionError(f"{len(self.hashes)} bytes of hashes")
        return [self.hashes[start : start + HASH_BYTES] for start in range(0, len(self.hashes), HASH_BYTES)]


class Hottest(msgspec.Struct, tag=True):
    """Which blocks came back most often is asked for: at most so many."""

    most: int


class Wire:
    """One end of a connection.

    Args:
        connected: the socket; `close` closes it.
        seconds: that anything may take from now on, see `within`.
    """

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self._socket = connected
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.within(seconds)

    def within(self, seconds: float) -> None:
        """What follows is to be over after so long, however slowly the other side goes on.

        Raises, in all that follows:
            OSError: it is not, or the connection has ended.
        """
        self._end = time.monotonic() + seconds

    def prove(self, challenge: Challenge) -> None:
        """Show that this side knows the secret, and see that the other one does.

        Raises:
            Stranger: it does not.
        """
        if challenge.first:
            self._send(challenge.first)
        while expected := challenge.expected:
            if answer := challenge.answer(self._receive(expected)):
                self._send(answer)

    def say(self, message: msgspec.Struct) -> None:
        """Send a message."""
        self._send(msgspec.msgpack.encode(message))

    def hear(self, kind: Any) -> Any:
        """A message of a kind, or of one of several (`A | B`).

        Raises:
            msgspec.MsgspecError: it is another one.
        """
        try:
            return msgspec.msgpack.decode(self._receive(None), type=kind)
        except RecursionError:
            raise msgspec.DecodeError("it is nested too deeply") from None

    def put(self, data: bytes | memoryview) -> None:
        """Send bytes whose number the other side knows."""
        self._socket.settimeout(self._left())
        self._socket.sendall(data)

    def take_into(self, into: memoryview) -> None:
        """Fill this with bytes that come."""
        while into:
            self._socket.settimeout(self._left())
            count = self._socket.recv_into(into)
            if not count:
                raise ConnectionError("the other side has left")
            into = into[count:]

    def take(self, count: int) -> bytes:
        """So many bytes."""
        data = bytearray(count)
        self.take_into(memoryview(data))
        return bytes(data)

    def close(self) -> None:
        """End the connection; whoever waits for something on it is told so."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self, payload: bytes) -> None:
        self.put(len(payload).to_bytes(_LENGTH, "big") + payload)

    def _receive(self, expected: int | None) -> bytes:
        length = int.from_bytes(self.take(_LENGTH), "big")
        if length > MAX_WORDS or expected not in (None, length):
            raise Stranger
        return self.take(length)

    def _left(self) -> float:
        if (left := self._end - time.monotonic()) <= 0:
            raise TimeoutError("the other side is too slow")
        return left


def joined(hashes: Sequence[bytes]) -> Wanted:
    """Hashes as a question."""
    return Wanted(b"".join(hashes))
