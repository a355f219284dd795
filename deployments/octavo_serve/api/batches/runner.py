"""Works on batches in a gateway: takes turns, runs the lines that it is given, reads and writes files.

    turn ──> lines ── ask ──> results, which the next turn tells
         └─> a chore: a file to check, or the files of a batch that ends to write

Lines go the way of any request, below all others. So many are under way as the shards have places that nobody else
takes, and they are begun one after the other, so that nobody waits behind their texts. A turn costs a transaction that
is synced to the disk, so lines are leased ahead: as many as ended lately, for the next ones to begin without a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from octavo.errors import OctavoError
from octavo_serve.api.batches import work
from octavo_serve.api.batches.batches import Batches
from octavo_serve.api.batches.nouns import Asking, Batch, Leased, Outcome, Result, StoredFile, new_id
from octavo_serve.api.batches.reading import Read, body_of, error_of, read
from octavo_serve.api.usage import Usage

logger = logging.getLogger("ray.serve")

TICK_SECONDS = 0.5
"""Between two turns where nothing happens."""
GATHER_SECONDS = 0.02
"""Between two turns at least: what was done meanwhile is written down together."""
STALL_SECONDS = 3.0
"""Until the next turn after one that failed."""
LINES_PER_CORE, MOST_LINES = 25.0, 200.0
"""Lines per second that begin for each core of the machine, and in one gateway, unless the settings say otherwise: a
line takes two to three milliseconds of a core in gateway and shard, and people feel a tenth of the cores."""
LATE_TIMES, LATEST = 3.0, 0.25
"""How much longer the next line waits than the event loop was late after one, and for how many seconds that counts: a
line takes it a millisecond to read, render and tokenise, a long one more, and others may be at work."""
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
        usage: what was done for it.
    """

    status: int
    body: bytes
    is_json: bool = True
    again: float | None = None
    usage: Usage = field(default_factory=Usage)


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

    Attributes:
        workers: gateways that take turns.
    """

    def __init__(self, batches: Batches, ask: Ask, room: Callable[[str], int], max_bytes: Callable[[], int]) -> None:
        self._batches = batches
        self._ask = ask
        self._room = room
        self._max_bytes = max_bytes
        self._name = secrets.token_hex(8)
        self._open: list[Batch] = []
        self._paces: dict[str, _Pace] = {}
        self.workers = 1
        self._results: list[Result] = []
        self._ready: deque[Leased] = deque()
        self._running: dict[asyncio.Task[None], Leased] = {}
        self._under_way = Counter[str]()  # lines that run, by batch
        self._ended_lately = Counter[str]()  # since the last turn, by batch
        self._free = asyncio.Event()  # set when a line may be begun that could not before
        self._chore: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Work until cancelled; then everything is somebody else's at once."""
        beside = [asyncio.create_task(self._tidy()), asyncio.create_task(self._begin_lines())]
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
            tasks = [*beside, *self._running, *([self._chore] if self._chore else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(OctavoError):
                await self._batches.run(work.leave, self._name)

    async def _pause(self, busy: bool) -> None:
        if not busy:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._batches.changed.wait()
        await asyncio.sleep(GATHER_SECONDS)

    async def _turn(self) -> bool:
        """Tell what was done, and begin what comes; returns whether another turn would give more at once."""
        held = sum(leased.line.size for leased in (*self._running.values(), *self._ready))
        told = self._results[:]
        asking = Asking(self._name, told, self._rooms(), HELD_BYTES - held, self._chore is None)
        self._ended_lately.clear()
        turn = await self._batches.run(work.turn, asking, self._batches.clock(), self._batches.on)
        del self._results[: len(told)]
        self._batches.counts.lines.update(_outcome(result) for result in told)
        new = {batch.id for batch in turn.running} - {batch.id for batch in self._open}
        self._open, self.workers = turn.running, turn.workers
        self._paces = {batch.id: self._paces.get(batch.id) or _Pace() for batch in turn.running}
        self._batches.counts.batches, self._batches.counts.waiting = turn.batches, turn.waiting
        self._ready += turn.lines
        self._leave(turn.over)
        self._free.set()
        if turn.chore is not None:
            self._chore = asyncio.create_task(self._do(turn.chore))
        return bool(new)

    def _leave(self, over: set[str]) -> None:
        """Work no more on batches that are over."""
        for task, leased in self._running.items():
            if leased.batch.id in over:
                task.cancel()
        self._results += [Result(each.batch.id, each.line.number) for each in self._ready if each.batch.id in over]
        self._ready = deque(each for each in self._ready if each.batch.id not in over)

    def _rooms(self) -> dict[str, int]:
        """How many more lines each batch may have here, those included that can begin when others end.

        No more than can begin in a second: what is leased to a gateway that ends is nobody's for a while.
        """
        ready, soon, rooms = (
            Counter(leased.batch.id for leased in self._ready),
            max(1, int(self.rate)),
            dict[str, int](),
        )
        for batch in self._open:
            more = self._most(batch) + 2 * self._ended_lately[batch.id] - self._under_way[batch.id]
            rooms[batch.id] = min(more, soon) - ready[batch.id]
        return rooms

    def _most(self, batch: Batch) -> int:
        """Lines of a batch that may be under way here: gateways and a model's batches share what shards take."""
        sharing = sum(other.model == batch.model for other in self._open)
        share = -(-self._room(batch.model) // (self.workers * max(1, sharing)))
        pace = self._paces.get(batch.id)
        return 0 if pace is None else pace.most(share, self._batches.clock())

    # ── lines ──

    async def _begin_lines(self) -> None:
        """Begin lines one after the other, as soon as there is room for them."""
        while True:
            try:
                await self._begin_one()
            except Exception:
                logger.exception("No line of a batch can begin")
                await asyncio.sleep(STALL_SECONDS)

    async def _begin_one(self) -> None:
        """Begin a line and wait until the next one may begin; or wait for something to change."""
        self._free.clear()
        if (leased := self._next()) is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._free.wait()
            return
        self._begin(leased)
        loop = asyncio.get_running_loop()
        due = loop.time() + 1 / self.rate
        await asyncio.sleep(due - loop.time())
        await asyncio.sleep(LATE_TIMES * min(LATEST, loop.time() - due))

    @property
    def rate(self) -> float:
        """Lines that may begin here in a second: all gateways share them."""
        if (wanted := self._batches.on.lines_per_second) is not None:
            return wanted / self.workers
        return min(MOST_LINES, LINES_PER_CORE * (os.cpu_count() or 1) / self.workers)

    def _next(self) -> Leased | None:
        """The next line that may begin; batches take turns where one has no room."""
        full = set[str]()
        for place, leased in enumerate(self._ready):
            batch = leased.batch
            if batch.id in full:
                continue
            if self._under_way[batch.id] < self._most(batch):
                del self._ready[place]
                return leased
            full.add(batch.id)
        return None

    def _begin(self, leased: Leased) -> None:
        task = asyncio.create_task(self._perform(leased))
        self._running[task] = leased
        self._under_way[leased.batch.id] += 1
        self._batches.counts.running = len(self._running)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        batch = self._running.pop(task).batch.id
        self._under_way[batch] -= 1
        self._under_way = +self._under_way
        self._ended_lately[batch] += 1
        self._batches.counts.running = len(self._running)
        self._free.set()
        if not self._ready:
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
        return Result(batch.id, line.number, reply.status, written(line.custom_id, reply), usage=reply.usage)

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
