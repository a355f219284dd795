"""What was due and was not sent. A request that waits in the client until the run is over would else leave no trace,
and the server that let it wait would look better for it (coordinated omission)."""

from __future__ import annotations

from collections.abc import Iterable

from octavo_loadtest.job import Session, Turn
from octavo_loadtest.record import Record

UNSENT, UNFINISHED = "unsent", "unfinished"
"""How the errors begin of requests that were due and not sent, and of those without a whole answer at the run's end."""
NS = 1_000_000_000


def unsent(sessions: Iterable[Session], records: Iterable[Record], closed: bool, ended: int) -> list[Record]:
    """A record of each request that was due before the run `ended` (ns since its start) and was not sent.

    In an open loop a session is due at its time, in a closed one once it began. A later turn is due when its user has
    read the answer before it; behind a failed one too, for its user wanted to go on.
    """
    told: dict[str, list[Record]] = {}
    for record in records:
        told.setdefault(record.session, []).append(record)
    found = []
    for session in sessions:
        sent = sorted(told.get(session.name, ()), key=lambda record: record.turn)
        if sent or not closed:
            found += _rest(session, sent, ended)
    return found


def _rest(session: Session, sent: list[Record], ended: int) -> list[Record]:
    """The turns of one session that were due behind those that were sent."""
    found: list[Record] = []
    due, why = int(session.at * NS), "it was still waiting when the run was over"
    if sent:
        last = sent[-1]
        think = session.turns[len(sent)].think if len(sent) < len(session.turns) else 0.0
        due = last.scheduled if last.error else (last.end or last.scheduled) + int(think * NS)
        why = "the turn before it failed" if last.error else why
    for number in range(len(sent), len(session.turns)):
        if due > ended:
            return found
        found.append(_record(session, session.turns[number], number, due, f"{UNSENT}: {why}"))
        why = "the turn before it failed"
    return found


def _record(session: Session, turn: Turn, number: int, due: int, error: str) -> Record:
    return Record(
        index=turn.index,
        session=session.name,
        turn=number,
        process=-1,
        planned_prompt_tokens=turn.prompt_tokens,
        planned_output_tokens=turn.output_tokens,
        planned_cached_tokens=turn.cached_tokens,
        scheduled=due,
        sent=None,
        error=error,
    )


def without_cut(records: list[Record], ended: int) -> list[Record]:
    """The records of an interrupted run. What was cut off says nothing of the server while it had waited for less than
    the slowest answer took; what had waited for longer would have been slower still, and stays as a failure."""
    answered = [record.end - record.scheduled for record in records if record.ok and record.end is not None]
    slowest = max(answered, default=ended)
    return [record for record in records if not _cut(record) or ended - record.scheduled > slowest]


def _cut(record: Record) -> bool:
    return (record.error or "").startswith((UNSENT, UNFINISHED))
