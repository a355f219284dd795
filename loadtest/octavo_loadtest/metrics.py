"""Computes latencies from records, under a chosen definition.

s scheduled, a sent, f first and l last chunk with tokens, e end of the stream, n output tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest.record import TOKEN_KINDS, Chunk, Record

Floats = NDArray[np.float64]
NS = 1e9


@dataclass(frozen=True, slots=True)
class Definition:
    """How a tool defines its measures."""

    name: str
    about: str
    from_schedule: bool  # headline latencies start when a request was due, not when it was sent
    first_kinds: tuple[str, ...]  # of the chunk that ends the time to first token
    end_at_chunk: bool  # the answer ends with its last such chunk, not with the stream
    tpot: Callable[[float, float, float, float, int], float]  # (a, f, l, e, n) -> s


def _between(a: float, f: float, last: float, e: float, n: int) -> float:
    return (last - f) / (n - 1) if n > 1 else math.nan


def _after_first(a: float, f: float, last: float, e: float, n: int) -> float:
    return (e - f) / (n - 1) if n > 1 else math.nan


def _over_all(a: float, f: float, last: float, e: float, n: int) -> float:
    return (last - a) / n if n else math.nan


_WITH_EMPTY = (*TOKEN_KINDS, "empty")

DEFINITIONS = {
    definition.name: definition
    for definition in (
        Definition(
            "octavo",
            "TTFT f-s, E2E e-s, TPOT (l-f)/(n-1), normalized (e-s)/n; f is the first non-empty delta",
            True,
            TOKEN_KINDS,
            False,
            _between,
        ),
        Definition(
            "vllm",
            "TTFT f-a, E2E l-a, TPOT (l-f)/(n-1); f and l are chunks with choices, empty ones too",
            False,
            _WITH_EMPTY,
            True,
            _after_first,
        ),
        Definition(
            "guidellm",
            "TTFT f-a, E2E e-a, TPOT (l-a)/n: the first token is in it; ITL per request (l-f)/(n-1)",
            False,
            TOKEN_KINDS,
            False,
            _over_all,
        ),
        Definition("mlperf", "TTFT f-s, E2E e-s, TPOT (e-f)/(n-1)", True, TOKEN_KINDS, False, _after_first),
    )
}


@dataclass(slots=True)
class Measures:
    """Of all requests of a run, in seconds, in the records' order; a failed request is infinite everywhere."""

    definition: Definition
    ok: NDArray[np.bool_]
    scheduled: Floats
    sent: Floats
    end: Floats
    output_tokens: Floats
    latency: dict[str, dict[str, Floats]] = field(default_factory=dict)  # origin -> measure -> values
    gaps: Floats = field(default_factory=lambda: np.empty(0))  # between chunks with tokens, of all good requests

    def headline(self) -> dict[str, Floats]:
        """The measures from the definition's own origin."""
        return self.latency["from_schedule" if self.definition.from_schedule else "from_sent"]


def derive(records: list[Record], definition: Definition) -> Measures:
    """Measure every request."""
    measures = Measures(
        definition,
        ok=np.array([record.ok for record in records], dtype=bool),
        scheduled=np.array([record.scheduled for record in records]) / NS,
        sent=np.array([record.sent for record in records]) / NS,
        end=np.array([record.end or record.sent for record in records]) / NS,
        output_tokens=np.array([record.output_tokens for record in records], dtype=np.float64),
    )
    for origin in ("from_schedule", "from_sent"):
        rows = [_measure(record, definition, origin == "from_schedule") for record in records]
        measures.latency[origin] = {key: np.array([row[key] for row in rows]) for key in _KEYS}
        for values in measures.latency[origin].values():
            if measures.ok.any() and np.isnan(values[measures.ok]).all():
                values[:] = math.nan  # what no answer has, such as an embedding's first token, failures have not either
    gaps = [token_gaps(record) for record in records if record.ok]
    measures.gaps = np.concatenate(gaps) if gaps else np.empty(0)
    return measures


_KEYS = ("ttft", "visible", "e2e", "tpot", "itl", "normalized")


def _measure(record: Record, definition: Definition, from_schedule: bool) -> dict[str, float]:
    """itl is the mean gap of the request, (l-f)/(n-1) whatever the definition of TPOT; visible ends at the first token
    that is no reasoning."""
    if not record.ok or record.end is None:
        return dict.fromkeys(_KEYS, math.inf)
    start = record.scheduled if from_schedule else record.sent
    chunks = [chunk for chunk in record.chunks if chunk.kind in definition.first_kinds]
    tokens = record.token_chunks
    if not chunks or not tokens:
        return dict.fromkeys(_KEYS, math.nan) | {"e2e": (record.end - start) / NS}
    end = chunks[-1].at if definition.end_at_chunk else record.end
    n = record.output_tokens
    first, last = chunks[0].at, tokens[-1].at
    return {
        "ttft": (first - start) / NS,
        "visible": next((chunk.at - start for chunk in tokens if chunk.kind != "reasoning"), math.nan) / NS,
        "e2e": (end - start) / NS,
        "tpot": definition.tpot(record.sent, first, last, end, n) / NS,
        "itl": _between(record.sent, tokens[0].at, last, end, n) / NS,
        "normalized": (end - start) / NS / n if n else math.nan,
    }


def token_gaps(record: Record) -> Floats:
    """Seconds between successive chunks with tokens."""
    return np.diff(np.array([chunk.at for chunk in record.token_chunks], dtype=np.float64)) / NS


def tokens_of_chunks(record: Record) -> list[tuple[Chunk, float]]:
    """Each chunk with tokens and how many: as the server counted, else the request's tokens dealt by characters."""
    chunks = record.token_chunks
    counts = [chunk.completion_tokens for chunk in chunks]
    if chunks and all(count is not None for count in counts):
        return list(zip(chunks, np.diff([0, *counts]).tolist(), strict=True))
    characters = sum(chunk.characters for chunk in chunks) or 1
    return [(chunk, record.output_tokens * chunk.characters / characters) for chunk in chunks]


def token_times(records: Iterable[Record]) -> tuple[Floats, Floats]:
    """When tokens came (s, ascending), and how many each time; of failed requests too, for they were computed."""
    pairs = sorted((chunk.at, tokens) for record in records for chunk, tokens in tokens_of_chunks(record))
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0] / NS, table[:, 1]


def in_flight(sent: Floats, end: Floats) -> tuple[Floats, Floats]:
    """Times and the number of requests between sent and end from then on."""
    times = np.concatenate([sent, end])
    order = np.argsort(times, kind="stable")
    change = np.concatenate([np.ones(len(sent)), -np.ones(len(end))])[order]
    return times[order], np.cumsum(change)


def steady_window(measures: Measures) -> tuple[float, float]:
    """From one median answer after the first arrival (at most a quarter of the span) to the last arrival (s).

    Before it the server fills, after it the server drains: neither is a rate that it could keep. Arrivals that take
    less than two answers are all ramp and drain: then it is the whole run.
    """
    sent = measures.sent
    first, last = float(sent.min()), float(sent.max())
    answers = (measures.end - sent)[measures.ok]
    answer = float(np.median(answers)) if len(answers) else 0.0
    if last - first < 2 * answer or last == first:
        return first, float(measures.end.max())
    return first + min(answer, (last - first) / 4), last
