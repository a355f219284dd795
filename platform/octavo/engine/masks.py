"""Masks of a step's rows: what their grammars, lists of tokens and bad words leave to be drawn.

    commit ── begin_masks ── updates told, next step planned and laid out ── fill_masks ── launch
                  └──> a thread: masks of many grammars ─────────────────────────┘

A grammar's mask depends on the newest token, and Python's other work on nothing of it. So a thread begins with masks
as soon as a step's tokens are known. It needs Python's lock for a moment and no longer: `_Thread.begin` gives it.
What it has not begun with when its masks are wanted is made without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import cache
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING

import numpy as np

from octavo.engine.constrained import SLOW_REQUEST, SUSPECTED, Constraint, RequestRules
from octavo.step import Int64, SamplingRows, Uint32

if TYPE_CHECKING:
    from llguidance import LLExecutor

    from octavo.engine.sequence import Sequence

AHEAD = 16
"""Grammars from which their masks are made ahead. One takes 5 us, and giving them to the thread some tens."""

PATIENCE = 0.0002
"""Seconds that the thread has to begin. Where all cores are busy it takes milliseconds, and nothing is gained."""

ALONE = 0.002
"""Seconds for a step's masks after which threads share what is left. Usual rows take 5 us each, and waking threads
takes more than they save: of 64 streams' masks 17 us a row without, 28 with (the least of nine rounds; 23 and 77 on a
busy machine)."""

SUSPECT = 0.01
"""Seconds for a step's masks after which it is found out whose take long: then they are made one by one."""


class Making:
    """Masks of several grammars, which a thread makes, or whoever waits for them before it has begun.

    Attributes:
        masks: [M, words], good after `wait`, unless that `failed`.
        begun: released once they are being made.
    """

    def __init__(self, constraints: list[Constraint]) -> None:
        self._constraints = constraints
        self.masks = np.zeros((len(constraints), constraints[0].rules.words), np.uint32)
        self._jobs = [(constraint.make_ahead(self, place), place) for place, constraint in enumerate(constraints)]
        self._free, self.begun, self._done = Lock(), Lock(), Lock()
        self.begun.acquire()
        self._done.acquire()
        self.failed = False

    def run(self) -> None:
        """Make them, unless somebody does; for the most part without Python's lock."""
        if not self._free.acquire(blocking=False):
            return
        self.begun.release()
        begin = time.perf_counter()
        try:
            address, size = self.masks.ctypes.data, 4 * self.masks.shape[1]
            _threads(1).unsafe_compute_mask_ptr(self._jobs, address, size, len(self.masks))
        except BaseException:  # it is raised again in the step that needs them, which knows what to do
            self.failed = True
        _spent(self._constraints, time.perf_counter() - begin)
        self._constraints, self._jobs = [], []  # these hold this one
        self._done.release()

    def wait(self) -> None:
        """Until they are there."""
        self.run()
        with self._done:
            pass


class _Thread:
    """Makes masks, one step's after the other."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Making] = SimpleQueue()
        Thread(target=self._run, name="octavo-masks", daemon=True).start()

    def begin(self, making: Making) -> None:
        """Have them made. Meanwhile Python's lock is the thread's, which else would wait 5 ms for it."""
        self._queue.put(making)
        making.begun.acquire(timeout=PATIENCE)

    def _run(self) -> None:
        while True:
            self._queue.get().run()


@cache
def _thread() -> _Thread:
    return _Thread()


@cache
def _threads(count: int) -> LLExecutor:
    from llguidance import LLExecutor

    return LLExecutor(count)


def begin_masks(sequences: Iterable[Sequence]) -> None:
    """Begin with the masks of sequences that have got a token; few are not worth it, and slow ones are made apart."""
    constraints = [seq.constraint for seq in sequences if seq.constraint is not None and not seq.ended]
    ready = [each for each in constraints if each.is_active and not each.suspect and each.error is None]
    if len(ready) >= AHEAD:
        _thread().begin(Making(ready))


def fill_masks(rows: SamplingRows, constrained: list[tuple[int, Sequence]]) -> None:
    """Make the masks of rows, all at once.

    Args:
        constrained: (row, sequence) of sequences with a constraint. One may have several rows, one after the other:
            then other sequences start from it.
    """
    wanted = [(row, seq) for row, seq in constrained if seq.constraint is not None and seq.constraint.needs_mask]
    if not wanted:
        return
    masks = np.full((len(wanted), _rules(wanted[0][1]).words), 2**32 - 1, np.uint32)
    owners: dict[Sequence, int] = {}
    owned, places = [], []
    for place, (_, seq) in enumerate(wanted):
        constraint = seq.constraint
        if owners.setdefault(seq, place) == place and constraint is not None:
            owned.append((masks[place], seq, constraint))
            if (ahead := constraint.made_ahead()) is not None:
                masks[place] = ahead
            elif constraint.matcher is not None:
                places.append((constraint, place))
    if places:
        _make_masks(places, masks)
    for mask, seq, constraint in owned:
        constraint.check_matcher()
        constraint.exclude(mask, banned(seq))
    empty = set(np.flatnonzero(~np.any(masks, axis=1)).tolist())
    for place, (_, seq) in enumerate(wanted):
        if owners[seq] == place and place in empty:
            _rules_out_all(seq, masks[place])
    for mask, seq, constraint in owned:
        constraint.prefer(mask, seq.num_known - seq.num_prompt)
    if len(owned) < len(wanted):
        masks = masks[[owners[seq] for _, seq in wanted]]
    rows.masks, rows.masked = masks, np.array([row for row, _ in wanted], np.int32)


def _make_masks(places: list[tuple[Constraint, int]], masks: Uint32) -> None:
    """Have the grammars fill their rows: in this thread, in many where it takes long, and apart those that seem to."""
    address, size, left = masks.ctypes.data, 4 * masks.shape[1], SLOW_REQUEST
    together = []
    for constraint, place in places:
        if constraint.suspect and left > 0:
            left -= constraint.make_mask(address + place * size, size)
        else:
            together.append((constraint, place))
    if not together:
        return
    begin = time.perf_counter()
    jobs = [(matcher, place) for constraint, place in together if (matcher := constraint.matcher) is not None]
    for done, (matcher, place) in enumerate(jobs):
        if time.perf_counter() - begin > ALONE:
            _threads(min(8, os.cpu_count() or 1)).unsafe_compute_mask_ptr(jobs[done:], address, size, len(masks))
            break
        matcher.unsafe_compute_mask_ptr(address + place * size, size)
    _spent([constraint for constraint, _ in together], time.perf_counter() - begin)


def _spent(constraints: list[Constraint], seconds: float) -> None:
    """The masks of these took so long together."""
    for constraint in constraints:
        constraint.spend(seconds / len(constraints))
        if seconds > SUSPECT:
            constraint.suspect = SUSPECTED


def _rules_out_all(seq: Sequence, mask: Uint32) -> None:
    """Have a sequence end whose mask is empty; what it draws meanwhile is of no account."""
    assert seq.constraint is not None
    seq.constraint.fail("no token is left to draw: the grammar, allowed_token_ids and bad_words exclude each other")
    mask[:] = 2**32 - 1


def banned(seq: Sequence) -> Int64:
    """Tokens that a sequence does not draw next, because of bad words.

    What a token that is not known yet excludes, it excludes when it is known (`Sequence.is_void`).
    """
    constraint = seq.constraint
    if constraint is None:
        return np.zeros(0, np.int64)
    never = constraint.rules.never
    if seq.num_pending or not (found := constraint.banned(seq.token_ids, seq.num_prompt)):
        return never
    return np.union1d(never, np.array(found, np.int64))


def _rules(seq: Sequence) -> RequestRules:
    assert seq.constraint is not None
    return seq.constraint.rules
