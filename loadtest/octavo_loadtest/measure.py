"""One run: plan it, start the senders, collect what happened."""

from __future__ import annotations

import multiprocessing
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from octavo_loadtest import sender
from octavo_loadtest.arrivals import Arrivals
from octavo_loadtest.due import unsent, without_cut
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.job import Orders, Outcome, Pulse, Session, Target, Turn
from octavo_loadtest.load import Load
from octavo_loadtest.plan import Plan, make, sessions
from octavo_loadtest.record import TOKEN_KINDS, Record
from octavo_loadtest.server import ReplicaWatch, warm_up
from octavo_loadtest.sse import Count, Read, Stream, parse, parse_embeddings
from octavo_loadtest.text import Calibration

LEAD = 0.2  # s between the last sender's ready and the start of the run


@dataclass(slots=True)
class Senders:
    """Reports of the sending processes about themselves, over a run."""

    lags: list[float] = field(default_factory=list)  # s, every 20 ms of every process
    cpu_shares: list[float] = field(default_factory=list)  # of one core, by process
    sent: dict[int, int] = field(default_factory=dict)  # by process
    finished: dict[int, int] = field(default_factory=dict)
    ended: int = 0  # ns of the clock: when the last of them stopped sending

    def hear(self, pulse: Pulse) -> None:
        self.lags += pulse.lags
        self.sent[pulse.process] = pulse.sent
        self.finished[pulse.process] = pulse.finished
        if pulse.ended is not None:
            self.ended = max(self.ended, pulse.ended)
            self.cpu_shares.append(pulse.cpu_seconds / max(pulse.wall_seconds, 1e-9))


@dataclass(slots=True)
class Run:
    """A finished run: the plan, every record, and what is needed to judge them."""

    target: Target
    load: Load
    arrivals: Arrivals
    planned: int  # requests
    salt: str
    calibration: Calibration
    warmed: int  # requests before the run that were answered
    started: float  # wall clock (Unix s)
    records: list[Record] = field(default_factory=list)
    senders: Senders = field(default_factory=Senders)
    replicas: list[tuple[float, int | None]] = field(default_factory=list)  # (s, how many; None: it did not say)
    interrupted: bool = False
    plan: Plan | None = None  # None: read from its files


@dataclass(frozen=True, slots=True)
class Reader:
    """How answers are read: by the API that was asked, and with a tokenizer if one was given."""

    read: Callable[[list[Read]], Stream] = parse
    count: Count | None = None


Observer = Callable[[Run, float], None]  # the run so far, and seconds since it started


def measure(
    load: Load,
    target: Target,
    calibration: Calibration,
    observe: Observer | None = None,
    count: Count | None = None,
) -> Run:
    """Send a load and wait for the last answer. Ctrl-C ends it early and keeps what there is; a second one does not
    wait for the senders' last words.

    Raises:
        LoadTestError: the load makes no sense, or a sender died.
    """
    plan = make(load)
    salt = secrets.token_hex(8)  # not from the seed: the server may still hold the last run of this seed
    warmed = warm_up(target, sessions(replace(plan, sessions=plan.sessions[: load.warmup]), salt + "w", calibration))
    run = Run(target, load, plan.arrivals, plan.requests, salt, calibration, warmed, time.time(), plan=plan)
    everything = sessions(plan, salt, calibration)
    shares = [orders for orders in _orders(run, everything) if orders.sessions]
    turns = {turn.index: (n, turn) for share in shares for s in share.sessions for n, turn in enumerate(s.turns)}
    reader = Reader(parse_embeddings if target.api == "embeddings" else parse, count)
    with _Processes(shares) as processes:
        origin = processes.start()
        run.started = time.time() - (time.perf_counter_ns() - origin) / 1e9
        watch = ReplicaWatch(target, origin)
        try:
            _collect(run, processes, turns, origin, reader, observe)
        finally:
            run.replicas = watch.stop()
    complete(run, everything, run.senders.ended - origin if run.senders.ended else time.perf_counter_ns() - origin)
    run.records.sort(key=lambda record: record.index)
    return run


def complete(run: Run, everything: list[Session], ended: int) -> None:
    """Add what was due and not sent, until `ended` (ns since the start)."""
    run.records += unsent(everything, run.records, run.arrivals.closed, ended)
    if run.interrupted:
        run.records = without_cut(run.records, ended)


def _orders(run: Run, everything: list[Session]) -> list[Orders]:
    """Distribute the sessions over the processes in turn, so that each has the same mix and an equal part of the
    rate."""
    load, law = run.load, run.arrivals
    count = 1 if law.name == "batch" else load.processes
    slots = [load.concurrency // count + (i < load.concurrency % count) for i in range(count)]
    if load.concurrency and min(slots) == 0:
        raise LoadTestError(f"a concurrency of {load.concurrency} cannot be shared by {count} processes")
    return [
        Orders(
            process=i,
            target=run.target,
            sessions=tuple(everything[i::count]),
            closed=law.closed,
            concurrency=slots[i],
            batch=int(law.options.get("size", load.concurrency or 16)) if law.name == "batch" else 0,
            duration=load.duration or float("inf"),
            drain=load.drain,
        )
        for i in range(count)
    ]


class _Processes:
    """The sender processes, with a pipe to each. They end when the block is left."""

    def __init__(self, shares: list[Orders]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy our threads' locks
        self.pipes: list[Pipe] = []
        self._processes: list[SpawnProcess] = []
        for orders in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=sender.main, args=(theirs, orders), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self.pipes:
            pipe.close()

    def start(self) -> int:
        """Wait until all are ready, then tell them the time of the start (ns of the clock), which is returned."""
        for pipe in self.pipes:
            _receive(pipe)
        origin = time.perf_counter_ns() + int(LEAD * 1e9)
        for pipe in self.pipes:
            pipe.send(origin)
        return origin

    def stop(self) -> None:
        for pipe in self.pipes:
            pipe.send("stop")


def _receive(pipe: Pipe) -> object:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        raise LoadTestError("a sending process died; its error is above") from None


def _collect(
    run: Run,
    processes: _Processes,
    turns: dict[int, tuple[int, Turn]],
    origin: int,
    reader: Reader,
    observe: Observer | None,
) -> None:
    open_pipes = list(processes.pipes)
    while open_pipes:
        try:
            for pipe in wait(open_pipes, timeout=0.2):
                assert isinstance(pipe, Pipe)
                message = _receive(pipe)
                if isinstance(message, Outcome):
                    turn, planned = turns[message.index]
                    run.records.append(to_record(message, turn, planned, origin, reader))
                elif isinstance(message, Pulse):
                    run.senders.hear(message)
                    if message.ended is not None:
                        open_pipes.remove(pipe)
            if observe is not None:
                observe(run, (time.perf_counter_ns() - origin) / 1e9)
        except KeyboardInterrupt:
            if run.interrupted:
                return
            run.interrupted = True
            processes.stop()


def to_record(outcome: Outcome, turn: int, planned: Turn, origin: int, reader: Reader) -> Record:
    """Read what came back."""
    answer = outcome.answer
    record = Record(
        index=outcome.index,
        session=outcome.session,
        turn=turn,
        process=outcome.process,
        planned_prompt_tokens=planned.prompt_tokens,
        planned_output_tokens=planned.output_tokens,
        planned_cached_tokens=planned.cached_tokens,
        scheduled=outcome.scheduled - origin,
        sent=outcome.sent - origin,
        connected=None if outcome.connected is None else outcome.connected - origin,
        first_byte=None if answer.first_byte is None else answer.first_byte - origin,
        end=answer.end - origin,
        status=answer.status or None,
        error=outcome.error,
        headers={k: v for k, v in answer.headers.items() if k.startswith("x-") or k == "retry-after"},
    )
    if answer.status == 200:
        _read_answer(record, outcome, origin, reader)
    elif answer.reads:
        record.error = f"{outcome.error}: {answer.body[:200].decode(errors='replace')}"
    return record


def _read_answer(record: Record, outcome: Outcome, origin: int, reader: Reader) -> None:
    stream = reader.read([(at - origin, data) for at, data in outcome.answer.reads])
    if reader.count is not None:
        record.tokenized = stream.counted(reader.count)
    record.chunks, record.usage = stream.chunks, stream.usage
    record.finish_reason, record.done = stream.finish_reason, stream.done
    record.error = record.error or _fault(stream, reader.read is parse_embeddings)


def _fault(stream: Stream, embedded: bool) -> str | None:
    """Why an answer that came over HTTP to its end is none."""
    if stream.error is not None:
        return f"stream: {stream.error}"
    if stream.finish_reason is None:
        return "truncated: the stream ended without a finish_reason"
    if not embedded and not any(chunk.kind in TOKEN_KINDS for chunk in stream.chunks):
        return "empty: the answer has no token"
    return None
