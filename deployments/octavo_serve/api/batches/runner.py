"""Works on batches in a gateway: takes turns, runs the lines that it is given, reads and writes files.

    turn ──> lines ── ask ──> results, which the next turn tells
         └─> a chore: a file to check, or the files of a batch that ends to write

Lines go the way of any request, below all others. So many are under way as the shards have places that nobody else
takes, and they are begun a few at a time, so that nobody waits behind their texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec

from octavo.errors import OctavoError
from octavo_serve.api.batches import work
from octavo_serve.api.batches.batches import Batches
from octavo_serve.api.batches.nouns import Asking, Batch, Leased, Outcome, Result, StoredFile, new_id
from octavo_serve.api.batches.reading import Read, body_of, error_of, read

logger = logging.getLogger("ray.serve")

TICK_SECONDS = 0.5
"""Between two turns where nothing happens."""
GATHER_SECONDS = 0.02
"""Between two turns otherwise: what was done meanwhile is written down together."""
STALL_SECONDS = 3.0
"""Until the next turn after one that failed."""
STARTS = 4
"""Lines of a batch that one turn begins: each takes a millisecond of the event loop to read, render and tokenise."""
HELD_BYTES = 2**26
"""Of the lines that are under way in a gateway."""
MAX_TRIES = 10
"""Times that a line may be refused, because too much is to be done or nothing can do it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds until a refused line is tried again, each time twice as long, and not before it was told to come."""
MOST = 1024
"""Lines of a batch that may be under way in a gateway."""
WRITTEN = 256
"""Answers that are read and written at once."""
TIDY_SECONDS = 600.0
TTL_SECONDS = 30 * 86_400
"""Of an output file, unless its batch says otherwise."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a line was answered.

    Attributes:
        again: seconds until it should be tried again, if it was refused and told so.
    """

    status: int
    body: bytes
    is_json: bool = True
    again: float | None = None


Ask = Callable[[str, str, bytes], Awaitable[Reply]]
"""Asks for a caller, by name: path, body."""


@dataclass(slots=True)
class _Pace:
    """How many lines of a batch may be under way: half as many after each refusal, one more after each answer.

    So what is refused for load, or by a quota, slows a batch down and costs few of its lines a try.
    """

    lines: int = MOST
    later: float = 0.0

    def most(self, room: int, now: float) -> int:
        return 0 if now < self.later else min(room, self.lines)

    def told(self, refused_until: float | None) -> None:
        if refused_until is None:
            self.lines = min(self.lines + 1, MOST)
        else:
            self.lines, self.later = max(1, self.lines // 2), max(self.later, refused_until)


class Runner:
    """One gateway's.

    Args:
        room: lines of a model that may be under way in all gateways.
        max_bytes: of a line.
    """

    def __init__(self, batches: Batches, ask: Ask, room: Callable[[str], int], max_bytes: Callable[[], int]) -> None:
        self._batches = batches
        self._ask = ask
        self._room = room
        self._max_bytes = max_bytes
        self._name = secrets.token_hex(8)
        self._open: list[Batch] = []
        self._paces: dict[str, _Pace] = {}
        self._workers = 1
        self._results: list[Result] = []
        self._running: dict[asyncio.Task[None], Leased] = {}
        self._chore: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Work until cancelled; then everything is somebody else's at once."""
        tidying = asyncio.create_task(self._tidy())
        try:
            while True:
                self._batches.changed.clear()
                try:
                    busy = await self._turn()
                except Exception as error:  # the disk is full, say: what is to be told is told by a later turn
                    logger.error("Batches stand still: %s", error, exc_info=not isinstance(error, OctavoError))
                    busy = await asyncio.sleep(STALL_SECONDS, False)
                await self._pause(busy)
        finally:
            tasks = [tidying, *self._running, *([self._chore] if self._chore else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(OctavoError):
                await self._batches.run(work.leave, self._name)

    async def _pause(self, busy: bool) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS if busy else TICK_SECONDS):
                await self._batches.changed.wait()
        await asyncio.sleep(GATHER_SECONDS)

    async def _turn(self) -> bool:
        """Tell what was done, and begin what comes; returns whether more may be begun at once."""
        held = sum(leased.line.size for leased in self._running.values())
        told = self._results[:]
        asking = Asking(self._name, told, self._rooms(), HELD_BYTES - held, self._chore is None)
        turn = await self._batches.run(work.turn, asking, self._batches.clock(), self._batches.on)
        del self._results[: len(told)]
        self._batches.counts.lines.update(_outcome(result) for result in told)
        new = {batch.id for batch in turn.running} - {batch.id for batch in self._open}
        self._open, self._workers = turn.running, turn.workers
        self._paces = {batch.id: self._paces.get(batch.id) or _Pace() for batch in turn.running}
        self._batches.counts.batches, self._batches.counts.waiting = turn.batches, turn.waiting
        for leased in turn.lines:
            self._begin(leased)
        for task, leased in self._running.items():
            if leased.batch.id in turn.over:
                task.cancel()
        if turn.chore is not None:
            self._chore = asyncio.create_task(self._do(turn.chore))
        return bool(turn.lines or new)

    def _rooms(self) -> dict[str, int]:
        """How many more lines each batch may have under way: gateways and a model's batches share what shards take."""
        under_way = Counter(leased.batch.id for leased in self._running.values())
        sharing, now = Counter(batch.model for batch in self._open), self._batches.clock()
        rooms = dict[str, int]()
        for batch in self._open:
            share = -(-self._room(batch.model) // (self._workers * sharing[batch.model]))
            rooms[batch.id] = min(STARTS, self._paces[batch.id].most(share, now) - under_way[batch.id])
        return rooms

    # ── lines ──

    def _begin(self, leased: Leased) -> None:
        task = asyncio.create_task(self._perform(leased))
        self._running[task] = leased
        self._batches.counts.running = len(self._running)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._batches.counts.running = len(self._running)
        self._batches.changed.set()

    async def _perform(self, leased: Leased) -> None:
        batch, line = leased.batch, leased.line
        result = Result(batch.id, line.number)
        try:
            body = await self._batches.threads.finish(body_of, self._batches.on.path(batch.input), line)
            result = self._result(leased, await self._ask(batch.owner, batch.endpoint, body))
        except (OctavoError, OSError, msgspec.MsgspecError) as error:  # its file is gone, or was changed
            logger.error("Line %d of %s cannot be read: %s", line.number, batch.id, error)
            failed = work.refusal(line.custom_id, "server_error", "the line cannot be read any more")
            result = Result(batch.id, line.number, 500, failed)
        finally:
            self._results.append(result)

    def _result(self, leased: Leased, reply: Reply) -> Result:
        batch, line, now = leased.batch, leased.line, self._batches.clock()
        if refused := reply.status in (429, 503):
            due = now + min(max(reply.again or 0.0, FIRST_PAUSE * 2**leased.tries), LONGEST_PAUSE)
        if (pace := self._paces.get(batch.id)) is not None:
            pace.told(due if refused else None)
        if refused and leased.tries < MAX_TRIES:
            return Result(batch.id, line.number, due=due)
        return Result(batch.id, line.number, reply.status, written(line.custom_id, reply))

    # ── chores ──

    async def _do(self, batch: Batch) -> None:
        try:
            await (self._finalize(batch) if batch.ending else self._prepare(batch))
        except Exception as error:
            logger.error("%s has to wait: %s", batch.id, error, exc_info=not isinstance(error, OctavoError))
            await asyncio.sleep(TICK_SECONDS)
            await self._batches.run(work.let_go, self._name, batch.id)
        finally:
            self._chore = None
            self._batches.changed.set()

    async def _prepare(self, batch: Batch) -> None:
        """Check a batch's file."""
        path = self._batches.on.path(batch.input)
        try:
            found = await self._batches.threads.finish(read, path, batch.endpoint, self._max_bytes())
        except OSError:
            found = Read(errors=[error_of("invalid_file", "the file cannot be read")])
        await self._batches.run(work.prepared, self._name, batch.id, found, int(self._batches.clock()))

    async def _finalize(self, batch: Batch) -> None:
        """Write the files of a batch that ends."""
        now = int(self._batches.clock())
        output = await self._file_of(batch, now, went_well=True)
        error = await self._file_of(batch, now, went_well=False)
        await self._batches.run(work.finished, self._name, batch, output, error, now)

    async def _file_of(self, batch: Batch, now: int, *, went_well: bool) -> StoredFile | None:
        file_id = new_id("file")
        size = await self._batches.write(file_id, self._answers(batch, went_well))
        if not size:
            return None
        name = f"{batch.id}_{'output' if went_well else 'error'}.jsonl"
        ttl = int(batch.facts.get("output_ttl") or TTL_SECONDS)
        return StoredFile(
            id=file_id,
            owner=batch.owner,
            name=name,
            purpose="batch_output",
            size=size,
            created=now,
            expires=now + ttl,
        )

    async def _answers(self, batch: Batch, went_well: bool) -> AsyncIterator[bytes]:
        after = 0
        while rows := await self._batches.run(work.answers, batch, after, WRITTEN):
            after = rows[-1][0]
            yield b"".join(answer + b"\n" for _, well, answer in rows if well == went_well)

    async def _tidy(self) -> None:
        while True:
            try:
                await self._batches.tidy()
            except OctavoError as error:
                logger.error("Files of batches are not tidied up: %s", error)
            await asyncio.sleep(TIDY_SECONDS)


def _outcome(result: Result) -> Outcome:
    if result.status is None:
        return "left" if result.due is None else "refused"
    return "completed" if 200 <= result.status < 300 else "failed"


def written(custom_id: str, reply: Reply) -> bytes:
    """A line of an output or error file."""
    body = msgspec.Raw(reply.body.replace(b"\n", b" ")) if reply.is_json else reply.body.decode(errors="replace")
    response = {"status_code": reply.status, "request_id": new_id("req"), "body": body}
    return msgspec.json.encode({"id": new_id("batch_req"), "custom_id": custom_id, "response": response, "error": None})
