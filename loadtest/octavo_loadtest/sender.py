"""A sender process. It waits, sends, and records when bytes arrive; its parent parses them.

Parsing here would delay the time stamps of other streams: a long answer takes milliseconds to parse. Only answers of
sessions with another turn are parsed here, because the next prompt contains the answer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import queue
import signal
import threading
import time
from collections import deque
from multiprocessing.connection import Connection as Pipe
from time import perf_counter_ns
from typing import Any

from octavo_loadtest.client import Broken, Client, address
from octavo_loadtest.due import UNFINISHED
from octavo_loadtest.job import Orders, Outcome, Pulse, Session, Target, Turn
from octavo_loadtest.sse import parse

TICK = 0.02  # s between two looks at the event loop's lag
PULSE_TICKS = 12
NS = 1_000_000_000

Message = dict[str, str]


def main(pipe: Pipe, orders: Orders) -> None:
    """Entry point of the process: reports ready, waits for the start time, runs, reports outcomes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who then says stop
    gc.collect()
    gc.freeze()
    pipe.send("ready")
    origin: int = pipe.recv()
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    writer = threading.Thread(target=_write, args=(pipe, outbox))
    writer.start()
    try:
        asyncio.run(Sender(orders, origin, outbox).run(pipe))
    finally:
        outbox.put(None)
        writer.join()


def _write(pipe: Pipe, outbox: queue.SimpleQueue[Any]) -> None:
    # a full pipe blocks this thread, never the event loop
    while (message := outbox.get()) is not None:
        try:
            pipe.send(message)
        except OSError:  # the parent is gone
            return


class Sender:
    """Runs one process's share of the plan."""

    def __init__(self, orders: Orders, origin: int, outbox: queue.SimpleQueue[Any]) -> None:
        self._orders = orders
        self._origin = origin
        self._outbox = outbox
        target = orders.target
        self._client = Client(address(target.url), target.headers, target.reuse_connections)
        cap = orders.concurrency if orders.concurrency and not orders.closed else None
        self._slots = asyncio.Semaphore(cap) if cap else None
        self._sent = self._finished = 0
        self._ended = 0

    async def run(self, pipe: Pipe) -> None:
        """Run until the last answer, the end of the drain, or the parent's order to stop."""
        pulse = asyncio.create_task(self._pulse())
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
        work = asyncio.create_task(self._closed() if self._orders.closed else self._open())
        stopped = asyncio.create_task(stop.wait())
        last = self._orders.duration if self._orders.closed else max((s.at for s in self._orders.sessions), default=0.0)
        timeout = self._seconds_until(last) + self._orders.drain if last < float("inf") else None
        await asyncio.wait([work, stopped], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        self._ended = perf_counter_ns()
        await _cancel(work, stopped)
        await _cancel(pulse)  # last: its last word ends what the parent listens to
        self._client.close()
        asyncio.get_running_loop().remove_reader(pipe.fileno())

    # ---- who starts when

    async def _open(self) -> None:
        """Every session starts at its time, whatever the server does."""
        async with asyncio.TaskGroup() as group:
            for session in sorted(self._orders.sessions, key=lambda each: each.at):
                due = self._due(session.at)
                await self._sleep_until(due - NS // 20)
                group.create_task(self._session(session, due))

    async def _closed(self) -> None:
        """A session starts when another has ended (or, in batches, when all of them have)."""
        waiting = deque(self._orders.sessions)
        await self._sleep_until(self._origin)
        if self._orders.batch:
            while waiting and not self._over():
                now = perf_counter_ns()
                round_ = [waiting.popleft() for _ in range(min(self._orders.batch, len(waiting)))]
                await self._together([self._session(session, now) for session in round_])
            return
        await self._together([self._worker(waiting) for _ in range(self._orders.concurrency)])

    async def _worker(self, waiting: deque[Session]) -> None:
        while waiting and not self._over():
            await self._session(waiting.popleft(), perf_counter_ns())

    async def _together(self, coroutines: list[Any]) -> None:
        async with asyncio.TaskGroup() as group:
            for each in coroutines:
                group.create_task(each)

    def _over(self) -> bool:
        return perf_counter_ns() - self._origin > self._orders.duration * NS

    # ---- one session

    async def _session(self, session: Session, due: int) -> None:
        history: list[Message] = []
        for turn in session.turns:
            history.append({"role": "user", "content": turn.text})
            if turn is not session.turns[0]:
                due = perf_counter_ns() + int(turn.think * NS)
            request = self._render(turn, history)
            await self._sleep_until(due)
            outcome = await self._request(session, turn, due, request)
            if outcome.error is not None:
                return  # the turns behind it were due: due.py counts them
            if turn is not session.turns[-1]:
                history.append({"role": "assistant", "content": _text(outcome)})

    def _render(self, turn: Turn, history: list[Message]) -> bytes:
        target = self._orders.target
        return self._client.request(
            "POST", target.path, encode(target, history, turn.output_tokens), f"X-Request-ID: load-{turn.index}\r\n"
        )

    async def _request(self, session: Session, turn: Turn, due: int, request: bytes) -> Outcome:
        if self._slots is None:
            return await self._send(session, turn, due, request)
        async with self._slots:
            return await self._send(session, turn, due, request)

    async def _send(self, session: Session, turn: Turn, due: int, request: bytes) -> Outcome:
        self._sent += 1
        outcome = Outcome(self._orders.process, session.name, turn.index, due, perf_counter_ns())
        error = None
        try:
            async with asyncio.timeout(self._orders.target.timeout):
                await self._exchange(outcome, request)
        except TimeoutError:
            error = f"timeout: no whole answer after {self._orders.target.timeout:g} s"
        except OSError as problem:
            error = f"connect: {problem}"
        except Broken as problem:
            error = f"broken: {problem}"
        except asyncio.CancelledError:
            self._report(outcome, f"{UNFINISHED}: the run was over")
            raise
        self._report(outcome, error)
        return outcome

    async def _exchange(self, outcome: Outcome, request: bytes) -> None:
        connection, outcome.connected = await self._client.exchange(request, outcome.answer)
        self._client.release(connection)

    def _report(self, outcome: Outcome, error: str | None) -> None:
        self._finished += 1
        outcome.error = error
        if error is None and outcome.answer.status != 200:
            outcome.error = f"http {outcome.answer.status}"
        outcome.answer.end = outcome.answer.end or perf_counter_ns()
        self._outbox.put(outcome)

    # ---- clocks

    def _due(self, seconds: float) -> int:
        return self._origin + int(seconds * NS)

    def _seconds_until(self, seconds: float) -> float:
        return (self._due(seconds) - perf_counter_ns()) / NS

    async def _sleep_until(self, due: int) -> None:
        while (left := due - perf_counter_ns()) > 0:
            await asyncio.sleep(left / NS)

    async def _pulse(self) -> None:
        """Records how late the event loop wakes up, because time stamps are late by as much."""
        lags: list[float] = []
        start, cpu = time.perf_counter(), time.process_time()
        try:
            while True:
                due = time.perf_counter() + TICK
                await asyncio.sleep(TICK)
                lags.append(time.perf_counter() - due)
                if len(lags) == PULSE_TICKS:
                    self._outbox.put(self._say(start, cpu, lags))
                    lags = []
        finally:
            self._outbox.put(self._say(start, cpu, lags, self._ended))

    def _say(self, start: float, cpu: float, lags: list[float], ended: int | None = None) -> Pulse:
        used, passed = time.process_time() - cpu, time.perf_counter() - start
        return Pulse(self._orders.process, self._sent, self._finished, used, passed, lags, ended)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def _text(outcome: Outcome) -> str:
    return parse(outcome.answer.reads).text


def encode(target: Target, history: list[Message], output_tokens: int) -> bytes:
    """The JSON body of one request: streamed, if it asks for text."""
    text = "\n".join(message["content"] for message in history)
    asked: dict[str, Any] = {"max_tokens": output_tokens, "stream": True}
    if target.api == "embeddings":
        asked = {"input": text, "encoding_format": "base64"}
    elif target.api == "chat":
        asked["messages"] = history
    else:
        asked["prompt"] = text
    body = {"model": target.model, **asked, **target.body}
    return json.dumps(body, separators=(",", ":")).encode()
