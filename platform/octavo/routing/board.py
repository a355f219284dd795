"""Scores a thousand shards at once, to find the few that a policy has to look at.

A row for each shard has what `octavo.routing.policy` computes from its state alone; the rest of the formula is done for
all rows together, with the same operations in the same order, so that its numbers are the same to the last bit. The
best few by them are what the policy decides among, and as the best of all is one of them, it decides as if it had seen
all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from octavo.load import ShardState
from octavo.routing.policy import BUSIEST, Query, step_below

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]
    Places = npt.NDArray[np.int64]

_COLUMNS = 21
_BLOCK_SIZE, _FETCHED_BLOCK, _HAS_PROMPTS, _FETCHED_START = 9, 10, 11, 20
"""Columns that are read by themselves; `Board.put` has the order of all."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Who gives the most of a prompt.

    Attributes:
        row: of the shard that has the most.
        tokens: that it has.
        second: that the next one has, which gives them to the first.
    """

    row: int
    tokens: int
    second: int


class Board:
    """The rows."""

    def __init__(self) -> None:
        self._table = np.ones((_COLUMNS, 64))
        self.count = 0

    def put(self, row: int, state: ShardState, adapter_seconds: float, *, stale: bool, below: int = 0) -> None:
        """A shard is in this state from now on, with so many sequences below all others."""
        if row >= self._table.shape[1]:
            self._table = np.concatenate([self._table, np.ones((_COLUMNS, row + 64))], axis=1)
        self.count = max(self.count, row + 1)
        places = room = math.inf
        if state.num_sequences:
            places = state.max_num_seqs - state.num_sequences
            room = state.blocks_free * state.block_size - state.backlog_tokens if places > 0 else -1
        running = max(1, state.num_running)
        chunk, step = max(state.chunk, 1), state.step_seconds
        self._table[:, row] = (
            state.queue_seconds + step_below(state, below), step + state.cost.sequence, state.cost.token,
            state.cost.attended, chunk, state.decoding, places, room, adapter_seconds, state.block_size, 0.0 if
            stale else state.fetched_block, state.prefilling + state.queued > 0, state.backlog_tokens,
            state.blocks_free, state.full, max(1.0, (state.blocks - state.blocks_free) / running), running,
            state.mean_output, state.full_step_seconds, state.backlog_tokens / chunk * step,
            state.fetched_start,
        )  # fmt: skip

    def tokens(self, lengths: Numbers, query: Query) -> Numbers:
        """Leading tokens of a prompt that are at each shard, by how many blocks of it are there."""
        size = self._table[_BLOCK_SIZE, : self.count]
        found: Numbers = np.floor(np.minimum(lengths, (query.tokens - 1) / size)) * size
        return found

    @property
    def fetches(self) -> bool:
        """Whether any shard has blocks come from others."""
        return bool(self._table[_FETCHED_BLOCK, : self.count].any())

    def share_busy(self, rows: Places) -> float:
        """Of these shards, those that have prompts to compute."""
        return float(np.count_nonzero(self._table[_HAS_PROMPTS, rows])) / len(rows)

    def best(
        self, query: Query, rows: Places, cached: Numbers, stream_weight: float, few: int, first: int, *,
        warm: Sequence[int] = (), peers: Peers | None = None, within: float = math.inf,
    ) -> list[int]:  # fmt: skip
        """Of these rows, those with the lowest scores, in their order from place `first` on.

        Among them is one that holds the most of the prompt, and one that may fetch if any may.

        Args:
            cached: leading tokens of the prompt that each row is credited with.
            few: how many are wanted; of equal ones those that come first.
            warm: rows that have the request's adapter.
            peers: from whom a shard may fetch.
            within: seconds in which the request is to begin there.
        """
        start, total = self._totals(query, cached, stream_weight, warm)
        there = None
        if peers is not None:
            there = np.full(self.count, float(peers.tokens))
            there[peers.row] = peers.second
            takes = (self._table[_FETCHED_BLOCK, : self.count] > 0) & (there > cached)
            size, start_of, block = (
                self._table[column, : self.count] for column in (_BLOCK_SIZE, _FETCHED_START, _FETCHED_BLOCK)
            )
            fetch = start_of + (there - cached) / size * block
            _, fetched = self._totals(query, there, stream_weight, warm, fetch)
            total = np.where(takes & (fetched < total), fetched, total)
            there = takes[rows]
        total, held = total[rows], cached[rows]
        if within < math.inf:
            late = start[rows] > within
            total[late], held[late] = math.inf, -1.0
            there = None if there is None else there & ~late
        chosen = _lowest(total, few, first)
        for most in (held,) if there is None else (held, there):
            if most[place := int(most.argmax())] > 0:
                chosen.append(place)
        return [int(rows[place]) for place in sorted(set(chosen), key=lambda place: (place < first, place))]

    def _totals(
        self, query: Query, cached: Numbers, stream_weight: float, warm: Sequence[int], fetch: Numbers | None = None
    ) -> tuple[Numbers, Numbers]:
        """Seconds until the request begins, and scores: as `octavo.routing.policy.score` has them."""
        queue, step, token, each, chunk, decoding, places, room, adapter = self._table[:9, : self.count]
        uncached = query.tokens - cached
        positions = uncached * ((cached + (query.tokens + 1)) * 0.5)  # `cost_model.attended`, exact below 2**53
        compute = token * uncached + each * positions
        busy = min(query.busy, BUSIEST)
        others = (busy / (1 - busy) + stream_weight * decoding) * compute
        full = room < query.tokens
        if query.sequences > 1:
            full |= places < query.sequences
        first = start = self._start(query, queue, full) if full.any() else queue
        if query.adapter:
            cold = adapter.copy()
            cold[list(warm)] = 0.0
            first = first + cold
        if fetch is not None:
            first = first + fetch
        steps = np.maximum(1.0, uncached / chunk)
        return start, first + (steps * step + compute) + others

    def _start(self, query: Query, queue: Numbers, full: npt.NDArray[np.bool_]) -> Numbers:
        """As `ShardState.start_seconds`: only where there is no room, anything has to end before."""
        rows = np.flatnonzero(full)
        places, _, _, size, _, _, backlog, free, most, held, running, mean, step, over = self._table[
            6:_FETCHED_START, rows
        ]
        places = query.sequences - places
        blocks = (backlog + query.tokens) / size - free
        steps = np.maximum(places / most, blocks / held / running) * mean
        start = queue.copy()
        start[rows] = np.maximum(0.0, steps * step - over) + start[rows]
        return start


def _lowest(total: Numbers, few: int, first: int) -> list[int]:
    """Where the lowest numbers are; of equal ones those that come first from place `first` on."""
    total, chosen = np.concatenate((total[first:], total[:first])), []
    for _ in range(min(few, len(total))):
        place = int(total.argmin())
        if total[place] == math.inf:
            break
        total[place] = math.inf
        chosen.append((place + first) % len(total))
    return chosen
