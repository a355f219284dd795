"""A shard's port: where gateways connect to its engine."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from octavo.engine.async_engine import AsyncEngine
from octavo.errors import EngineDead
from octavo.request import SequenceUpdate
from octavo_serve.channel import (
    SECRET_BYTES,
    TO_SHARD,
    Address,
    Beat,
    Channel,
    Leaving,
    Refusal,
    Step,
    Submit,
    ToShard,
)

BEAT_SECONDS = 1.0


class Port:
    """Listens for gateways, those that know its secret; gives their requests to the engine and its steps' updates to
    them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.leaving = False
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._gateways: set[_Gateway] = set()
        self._server: asyncio.Server | None = None
        self._beating: asyncio.Task[None] | None = None

    async def open(self, host: str) -> Address:
        """Listen on one of this machine's addresses, at a port that the system chooses."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, 0)
        self._beating = loop.create_task(self._beat())
        port: int = self._server.sockets[0].getsockname()[1]
        return Address(host, port, self.secret.hex())

    async def leave(self, patience: float) -> None:
        """Take no more requests, wait for those that run, and after `patience` seconds hand over what is left."""
        self.leaving = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while any(gateway.open_sequences for gateway in self._gateways):
                    await asyncio.sleep(0.05)
        if self._beating is not None:
            self._beating.cancel()
        if self._server is not None:
            self._server.close()
        for gateway in list(self._gateways):
            gateway.channel.send(Leaving())
            gateway.channel.close()
        while self._gateways:  # what is sent has to arrive before the process ends
            await asyncio.sleep(0.01)

    def _accept(self) -> Channel:
        return _Gateway(self, asyncio.get_running_loop(), self._gateways).channel

    async def _beat(self) -> None:
        """Tell the gateways that the engine lives; leave them when it does not."""
        while True:
            try:
                self.engine.check_health()
            except EngineDead:
                for gateway in list(self._gateways):
                    gateway.channel.abort()
            for gateway in self._gateways:
                gateway.channel.send(Beat())
            await asyncio.sleep(BEAT_SECONDS)


class _Gateway:
    """One connected gateway: the engine's `Listener` for all of its requests."""

    def __init__(self, port: Port, loop: asyncio.AbstractEventLoop, connected: set[_Gateway]) -> None:
        self.loop = loop
        self.channel = Channel(TO_SHARD, self._receive, self._lost, self._made, port.secret)
        self.open_sequences: dict[str, int] = {}
        self._port = port
        self._connected = connected

    def updated(self, updates: list[SequenceUpdate]) -> None:
        self.channel.send(Step(updates))
        for update in updates:
            if update.finish_reason is not None:
                self._ended(update.request_id)

    def failed(self, request_id: str, error: Exception) -> None:
        self.open_sequences.pop(request_id, None)
        self.channel.send(Refusal.of(request_id, error))

    def _made(self) -> None:
        self._connected.add(self)
        self.channel.send(Beat())

    def _ended(self, request_id: str) -> None:
        left = self.open_sequences.get(request_id, 1) - 1
        if left:
            self.open_sequences[request_id] = left
        else:
            self.open_sequences.pop(request_id, None)

    def _receive(self, message: ToShard) -> None:
        if not isinstance(message, Submit):
            self._port.engine.abort(message.request_id, message.index)
        elif self._port.leaving:
            self.channel.send(Refusal.of(message.request.request_id, EngineDead("this shard is leaving")))
        else:
            self._submit(message)

    def _submit(self, message: Submit) -> None:
        request = message.request
        emitted = request.emitted or [[]] * request.params.num_sequences
        self.open_sequences[request.request_id] = sum(tokens is not None for tokens in emitted)
        try:
            self._port.engine.submit(request, self)
        except EngineDead as error:
            self.failed(request.request_id, error)

    def _lost(self) -> None:
        self._connected.discard(self)
        for request_id in self.open_sequences:
            self._port.engine.abort(request_id)
        self.open_sequences.clear()
