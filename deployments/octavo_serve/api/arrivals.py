"""The updates of several requests as one stream, in the order in which they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from octavo.request import Placement, Request, SequenceUpdate
from octavo_serve.api.model import ModelClient

STARTS = 32
"""Requests sent on their way in one turn of the event loop."""

MANY = 1024
"""Updates that may wait here for a consumer that does not read; all others wait in their requests' streams."""


class Arrivals:
    """Reads each request in a task of its own; used as the asynchronous generator that `ModelClient.generate` is."""

    def __init__(self, client: ModelClient, requests: Sequence[Request]) -> None:
        self._client = client
        self._requests = requests
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._reading = len(requests)
        self._arrived: list[SequenceUpdate] = []
        self._placements: dict[str, Placement | None] = {}
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    def __aiter__(self) -> Arrivals:
        return self

    async def __anext__(self) -> list[SequenceUpdate]:
        if not self._readers:
            await self._start()
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if not self._reading:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()  # half of what an Event costs
            await self._waiter
        arrived, self._arrived = self._arrived, []
        self._room.set()
        return arrived

    def placement(self, request_id: str) -> Placement | None:
        """Where a request was sent whose first updates are there; known after its stream has ended, too."""
        return self._placements[request_id]

    def leave(self, request_id: str) -> None:
        """End a request whose updates nobody wants any more."""
        self._readers[request_id].cancel()

    async def aclose(self) -> None:
        """End them all."""
        reading = [reader for reader in self._readers.values() if not reader.done()]
        for reader in reading:
            reader.cancel()
        if reading:
            await asyncio.gather(*reading, return_exceptions=True)

    async def _start(self) -> None:
        for number, request in enumerate(self._requests, 1):
            reader = self._readers[request.request_id] = asyncio.create_task(self._read(request))
            reader.add_done_callback(self._ended)
            if number % STARTS == 0:
                await asyncio.sleep(0)

    async def _read(self, request: Request) -> None:
        async with aclosing(self._client.generate(request)) as stream:
            async for updates in stream:
                if request.request_id not in self._placements:
                    self._placements[request.request_id] = self._client.placement(request.request_id)
                self._arrived += updates
                self._wake()
                while len(self._arrived) > MANY:
                    self._room.clear()
                    await self._room.wait()

    def _ended(self, reader: asyncio.Task[None]) -> None:
        self._reading -= 1
        if not reader.cancelled():
            self._error = self._error or reader.exception()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
