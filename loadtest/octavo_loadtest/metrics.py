"""Computes latencies from records, under a chosen definition.

s scheduled, a sent, f first and l last chunk with tokens, e end of the stream, n output tokens, k of them in the first
chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest.record import TOKEN_KINDS, Chunk, Record

Floats = NDArray[np.float64]
NS = 1e9
SINGLE = 0.8
"""Chunks per token from which uncounted chunks are held to have a token each; an end token or a half character may not
show in any."""


class Span(NamedTuple):
    """What times per token are made of, in ns and tokens."""

    sent: float
    first: float
    last: float
    end: float
    tokens: int
    at_first: float  # tokens of the first chunk that has any


@dataclass(frozen=True, slots=True)
class Definition:
    """How a tool defines its measures."""

    name: str
    about: str
    from_schedule: bool  # headline latencies start when a request was due, not when it was sent
    first_kinds: tuple[str, ...]  # of the chunk that ends the time to first token
    end_at_chunk: bool  # the answer ends with its last such chunk, not with the stream
    tpot: Callable[[Span], float]  # ns
    itl: Callable[[Span], float]  # ns


def _over(time: float, tokens: float) -> float:
    return time / tokens if tokens > 0 else math.nan


def _after_chunk(span: Span) -> float:
    return _over(span.last - span.first, span.tokens - span.at_first)


def _between(span: Span) -> float:
    return _over(span.last - span.first, span.tokens - 1)


def _after_first(span: Span) -> float:
    return _over(span.end - span.first, span.tokens - 1)


def _over_all(span: Span) -> float:
    return _over(span.last - span.sent, span.tokens)


_WITH_EMPTY = (*TOKEN_KINDS, "empty")

DEFINITIONS = {
    definition.name: definition
    for definition in (
        Definition(
            "octavo",
            "TTFT f-s, E2E e-s, TPOT (l-f)/(n-k), normalized (e-s)/n; f is the first non-empty delta, k its tokens",
            True,
            TOKEN_KINDS,
            False,
            _after_chunk,
            _after_chunk,
        ),
        Definition(
            "vllm",
            "TTFT f-a, E2E l-a, TPOT (l-f)/(n-1); f and l are chunks with choices, empty ones too",
            False,
            _WITH_EMPTY,
            True,
            _after_first,
            _between,
        ),
        Definition(
            "guidellm",
            "TTFT f-a, E2E e-a, TPOT (l-a)/n: the first token is in it; ITL per request (l-f)/(n-1)",
            False,
            TOKEN_KINDS,
            False,
            _over_all,
            _between,
        ),
        Definition(
            "aiperf",
            "TTFT f-a, E2E l-a, TPOT and ITL (l-f)/(n-1)",
            False,
            TOKEN_KINDS,
            True,
            _between,
            _between,
        ),
        Definition("mlperf", "TTFT f-s, E2E e-s, TPOT (e-f)/(n-1)", True, TOKEN_KINDS, False, _after_first, _between),
    )
}


@dataclass(slots=True)
class Measures:
    """Of all requests that were due, in seconds, in the records' order; a failed request is infinite everywhere.

    What was never sent has no `sent` and no `end` (NaN), and is infinite as a failure is.
    """

    definition: Definition
    ok: NDArray[np.bool_]
    scheduled: Floats
    sent: Floats
    end: Floats
    output_tokens: Floats
    latency: dict[str, dict[str, Floats]] = field(default_factory=dict)  # origin -> measure -> values
    gaps: Floats = field(default_factory=lambda: np.empty(0))  # between chunks with tokens, of all good requests
    token_gaps: Floats = field(default_factory=lambda: np.empty(0))  # the same, dealt to the tokens of each chunk

    def headline(self) -> dict[str, Floats]:
        """The measures from the definition's own origin."""
        return self.latency["from_schedule" if self.definition.from_schedule else "from_sent"]

    @property
    def order(self) -> NDArray[np.int64]:
        """The requests as they became due: what depends on each other is then together."""
        return np.argsort(self.scheduled, kind="stable")

    @property
    def late(self) -> Floats:
        """Seconds between a request's schedule and its send; infinite for what was never sent."""
        return np.where(np.isnan(self.sent), math.inf, self.sent - self.scheduled)

    @property
    def span(self) -> tuple[float, float]:
        """From the first send to the last end (s); where nothing was sent, from the first schedule to the last."""
        start, end = (self.sent, self.end) if not np.isnan(self.sent).all() else (self.scheduled, self.scheduled)
        return float(np.nanmin(start)), float(np.nanmax(end))


def derive(records: list[Record], definition: Definition) -> Measures:
    """Measure every request."""
    gaps = [np.array(chunk_gaps(record)).reshape(-1, 2) for record in records if record.ok]
    between = np.concatenate(gaps) if gaps else np.empty((0, 2))
    measures = Measures(
        definition,
        ok=np.array([record.ok for record in records], dtype=bool),
        scheduled=np.array([record.scheduled for record in records]) / NS,
        sent=_seconds(record.sent for record in records),
        end=_seconds(record.sent if record.end is None else record.end for record in records),
        output_tokens=np.array([record.output_tokens for record in records], dtype=np.float64),
        gaps=between[:, 0],
        token_gaps=_dealt(between),
    )
    for origin in ("from_schedule", "from_sent"):
        rows = [_measure(record, definition, origin == "from_schedule") for record in records]
        measures.latency[origin] = {key: np.array([row[key] for row in rows]) for key in _KEYS}
        for values in measures.latency[origin].values():
            if measures.ok.any() and np.isnan(values[measures.ok]).all():
                values[:] = math.nan  # what no answer has, such as an embedding's first token, failures have not either
    return measures


def _dealt(between: Floats) -> Floats:
    """Gaps between tokens: of a chunk's wait an equal part for each of its tokens."""
    tokens = np.maximum(1.0, between[:, 1])
    return np.repeat(between[:, 0] / tokens, tokens.round().astype(int))


def _seconds(times: Iterable[int | None]) -> Floats:
    return np.array([math.nan if time is None else time / NS for time in times])


_KEYS = ("ttft", "visible", "e2e", "tpot", "itl", "normalized")


def _measure(record: Record, definition: Definition, from_schedule: bool) -> dict[str, float]:
    """itl is the mean gap between the tokens of the request; visible ends at the first token that is no reasoning."""
    if not record.ok or record.end is None or record.sent is None:
        return dict.fromkeys(_KEYS, math.inf)
    start = record.scheduled if from_schedule else record.sent
    chunks = [chunk for chunk in record.chunks if chunk.kind in definition.first_kinds]
    tokens = record.token_chunks
    if not chunks or not tokens:
        return dict.fromkeys(_KEYS, math.nan) | {"e2e": (record.end - start) / NS}
    end = chunks[-1].at if definition.end_at_chunk else record.end
    first, last, n = chunks[0].at, tokens[-1].at, record.output_tokens
    at_first = tokens_of_chunks(record)[0][1]
    return {
        "ttft": (first - start) / NS,
        "visible": next((chunk.at - start for chunk in tokens if chunk.kind != "reasoning"), math.nan) / NS,
        "e2e": (end - start) / NS,
        "tpot": definition.tpot(Span(record.sent, first, last, end, n, at_first)) / NS,
        "itl": definition.itl(Span(record.sent, tokens[0].at, last, end, n, at_first)) / NS,
        "normalized": (end - start) / NS / n if n else math.nan,
    }


def chunk_gaps(record: Record) -> list[tuple[float, float]]:
    """Seconds between successive chunks with tokens, and how many tokens each wait brought."""
    dealt = tokens_of_chunks(record)
    return [((chunk.at - before.at) / NS, tokens) for (before, _), (chunk, tokens) in pairwise(dealt)]


def tokens_of_chunks(record: Record) -> list[tuple[Chunk, float]]:
    """Each chunk with tokens and how many: as the server or a tokenizer counted; else one each where there are about
    as many chunks as tokens, and by their characters where there are fewer."""
    chunks = record.token_chunks
    counts = [chunk.completion_tokens for chunk in chunks]
    known = [count for count in counts if count is not None]
    if chunks and len(known) == len(chunks) and known[0] > 0 and known == sorted(known):
        return list(zip(chunks, np.diff([0, *known]).tolist(), strict=True))
    tokens = record.output_tokens
    if len(chunks) > SINGLE * tokens:
        return [(chunk, tokens / len(chunks)) for chunk in chunks]
    characters = sum(chunk.characters for chunk in chunks) or 1
    return [(chunk, tokens * chunk.characters / characters) for chunk in chunks]


def token_times(records: Iterable[Record]) -> tuple[Floats, Floats]:
    """When tokens came (s, ascending), and how many each time; of failed requests too, for they were computed."""
    pairs = sorted((chunk.at, tokens) for record in records for chunk, tokens in tokens_of_chunks(record))
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0] / NS, table[:, 1]


def in_flight(sent: Floats, end: Floats) -> tuple[Floats, Floats]:
    """Times and the number of requests between sent and end from then on; what was never sent is nowhere."""
    sent, end = sent[~np.isnan(sent)], end[~np.isnan(sent)]
    times = np.concatenate([sent, end])
    order = np.argsort(times, kind="stable")
    change = np.concatenate([np.ones(len(sent)), -np.ones(len(end))])[order]
    return times[order], np.cumsum(change)


def steady_window(measures: Measures) -> tuple[float, float]:
    """From one median answer after the first arrival (at most a quarter of the span) to the last arrival (s).

    Before it the server fills, after it the server drains: neither is a rate that it could keep. Arrivals that take
    less than two answers are all ramp and drain: then it is the whole run.
    """
    sent = measures.sent[~np.isnan(measures.sent)]
    first, last = (float(sent.min()), float(sent.max())) if len(sent) else measures.span
    answers = (measures.end - measures.sent)[measures.ok]
    answer = float(np.median(answers)) if len(answers) else 0.0
    if last - first < 2 * answer or last == first:
        return measures.span
    return first + min(answer, (last - first) / 4), last
