"""A sender in simulated time: thousands of seconds of load cost milliseconds, and every figure is exact."""

from __future__ import annotations

import asyncio
import json
import math
import queue
import selectors
import time
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any

import pytest

from octavo_loadtest import plan, sender
from octavo_loadtest.client import Answer
from octavo_loadtest.job import Orders, Outcome, Pulse, Session, Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Reader, Run, complete, to_record
from octavo_loadtest.text import Calibration

NS = 1_000_000_000


class Clock(selectors.DefaultSelector):
    """The selector of an event loop whose time stands still while anything runs, and else jumps to what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.ns = 0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout:
            self.ns += math.ceil(timeout * NS)
        return found

    def seconds(self) -> float:
        return self.ns / NS


class Server:
    """A server in simulated time, in the client's place: `slots` requests at once, the others in a queue.

    Args:
        fault: number of the request (from 0) -> what it gets instead of an answer, or None.
        slow: number of the request -> seconds that it takes longer.
    """

    def __init__(
        self,
        clock: Clock,
        ttft: float,
        itl: float,
        slots: int = 1_000_000,
        fault: Callable[[int], Exception | bytes | None] = lambda number: None,
        slow: Callable[[int], float] = lambda number: 0.0,
    ) -> None:
        self.clock, self.ttft, self.itl, self.fault, self.slow = clock, ttft, itl, fault, slow
        self._slots = asyncio.Semaphore(slots)
        self.asked: list[dict[str, Any]] = []

    def request(self, method: str, path: str, body: bytes, extra: str = "") -> bytes:
        return body

    def release(self, connection: Server) -> None: ...
    def close(self) -> None: ...

    async def exchange(self, request: bytes, answer: Answer) -> tuple[Server, None]:
        number, asked = len(self.asked), json.loads(request)
        self.asked.append(asked)
        async with self._slots:
            answer.status, answer.first_byte = 200, self.clock.ns
            self._write(answer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]}, 0)
            await asyncio.sleep(self.ttft + self.slow(number))
            wrong = self.fault(number)
            if isinstance(wrong, Exception):
                raise wrong
            if wrong is not None:
                answer.reads.append((self.clock.ns, wrong))
            for i in range(0 if wrong is not None else asked["max_tokens"]):
                await asyncio.sleep(self.itl if i else 0)
                self._write(answer, {"choices": [{"delta": {"content": " word"}}]}, i + 1)
            if wrong is None:
                self._write(answer, {"choices": [{"delta": {}, "finish_reason": "length"}]}, asked["max_tokens"])
            answer.end = self.clock.ns
        return self, None

    def _write(self, answer: Answer, event: dict[str, Any], tokens: int) -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": tokens}
        answer.reads.append((self.clock.ns, b"data: " + json.dumps(event | {"usage": usage}).encode() + b"\n\n"))


Simulate = Callable[..., tuple[Run, Server]]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """`simulated(load, ttft=, itl=, slots=, fault=, sessions=)` -> the run as `measure` would have left it."""

    def run(
        load: Load, sessions: list[Session] | None = None, stop_at: float = 0.0, **server: Any
    ) -> tuple[Run, Server]:
        clock = Clock()
        monkeypatch.setattr(sender, "perf_counter_ns", lambda: clock.ns)
        monkeypatch.setattr(sender, "time", _Time(clock))
        made = plan.make(load)
        everything = sessions or plan.sessions(made, "salt", Calibration())
        law = made.arrivals
        orders = Orders(
            0, Target("http://simulated", "m"), tuple(everything), law.closed, load.concurrency,
            int(law.options.get("size", load.concurrency or 16)) if law.name == "batch" else 0,
            load.duration or math.inf, load.drain,
        )  # fmt: skip
        found = Run(
            orders.target, load, law, sum(len(s.turns) for s in everything), "", Calibration(), 0, 0.0, plan=made
        )
        outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        theirs = _send(clock, orders, server, outbox, stop_at)
        turns = {turn.index: (n, turn) for session in everything for n, turn in enumerate(session.turns)}
        while not outbox.empty():
            message = outbox.get()
            if isinstance(message, Outcome):
                found.records.append(to_record(message, *turns[message.index], 0, Reader()))
            elif isinstance(message, Pulse):
                found.senders.hear(message)
        found.interrupted = bool(stop_at)
        complete(found, everything, found.senders.ended)
        found.records.sort(key=lambda record: record.index)
        return found, theirs

    return run


def _send(
    clock: Clock, orders: Orders, options: dict[str, Any], outbox: queue.SimpleQueue[Any], stop_at: float
) -> Server:
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = clock.seconds  # type: ignore[method-assign]
    ours, theirs = Pipe()

    async def both() -> Server:
        one = sender.Sender(orders, 0, outbox)
        server = Server(clock, **options)
        one._client = server  # type: ignore[assignment]
        if stop_at:
            loop.call_at(stop_at, ours.send, "stop")
        await one.run(theirs)
        return server

    try:
        return loop.run_until_complete(both())
    finally:
        loop.close()
        ours.close()
        theirs.close()


class _Time:
    """The clocks that a sender asks for its own delay: none, for no machine is in the way."""

    process_time = staticmethod(time.process_time)

    def __init__(self, clock: Clock) -> None:
        self.perf_counter = clock.seconds
