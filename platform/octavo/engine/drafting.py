"""How many tokens a draft model is asked for before a step, and of which sequences.

A pass of the draft model says one more token of each sequence that it runs for. Beside a step that yields `tokens` in
`seconds`, the next pass is worth it while

    sum of the chances that what it says is right      seconds that it and one more row of each sequence take
    ---------------------------------------------  >   ------------------------------------------------------
                      tokens                                              seconds

and a sequence is in it while the same holds for its own chance and row. So nothing is drafted where the step is long
because of its rows, and a pass that is not worth it is not run at all.

A sequence is drafted once the draft model has computed what it says so far. That is done in chunks no longer than a
step, if what its drafts are expected to save in the steps that it will still take is more. How many tokens it will
say is not known: as many as it has said, at least `_FEWEST` and no more than it may.

What has shown to be wrong, or to take too long, is tried again for one part in 200 of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from octavo.engine.drafter import Drafter
from octavo.engine.sequence import Sequence

if TYPE_CHECKING:
    from octavo.engine.followed import Followed

logger = logging.getLogger(__name__)

_MOST = 8
"""Tokens that are drafted of a sequence at once."""

_MARGIN = 1.2
"""What a pass must be worth, in passes; what a row must be worth has a margin of its own."""

_NEAR = 16
"""Tokens that a sequence may be behind to be drafted at once: it was left out of a few steps."""

_FEWEST = 64

_PROBING, _MOST_PROBING = 0.005, 8.0
"""Part of the time that goes into drafts which are expected not to pay, and steps for which it is saved up."""

_PROBED = 2
"""Tokens that such a draft has."""


class Yield(NamedTuple):
    """Tokens that a step is expected to yield, and the seconds it takes."""

    tokens: float
    seconds: float


class Mean(NamedTuple):
    """Of the sequences that decode: seconds that one more row takes, and tokens."""

    row: float
    context: float


@dataclass(slots=True, eq=False)
class Candidate:
    """A sequence that may be drafted.

    Attributes:
        row: seconds that one more of its rows takes.
        count: tokens that are to be drafted of it.
        right: chance that all of these are right.
        gained: how many of them are expected to be.
    """

    seq: Sequence
    state: Followed
    row: float
    count: int = 0
    right: float = 1.0
    gained: float = 0.0


class Drafting:
    """Decides, and has drafted.

    Args:
        in_flight: steps of the engine that run at once.

    Attributes:
        said: what was drafted for the step that is planned now.
        awaited: sequences that leave a step out to be drafted after it.
    """

    def __init__(self, drafter: Drafter, in_flight: int) -> None:
        self._drafter: Drafter | None = drafter
        self._in_flight = in_flight
        self._saved = 0.0  # seconds, for drafts that are expected not to pay
        self.said: dict[Sequence, list[int]] = {}
        self.awaited: set[Sequence] = set()

    def prepare(self, find: Callable[[], Iterable[Candidate]], step: Yield, room: int, mean: Mean) -> Yield:
        """Draft for a step; returns what it yields with that.

        Args:
            find: those that may be drafted; called only where drafts would be worth it if all were right.
            step: without drafts.
            room: rows that drafts may take.
        """
        self.said, self.awaited = {}, set()
        drafter = self._drafter
        if drafter is None or not step.tokens or room <= 0:
            return step
        self._saved = min(self._saved + _PROBING * step.seconds, _MOST_PROBING * step.seconds)
        try:
            if not self._may_pay(drafter, step, mean):
                self._measure(drafter)
                return step
            candidates = list(find())
            return self._prepare(drafter, candidates, step, room) if candidates else step
        except Exception:  # what it is for goes on without it
            logger.exception("the draft model raised: it is given up, and tokens are guessed from text alone")
            drafter.close()
            self._drafter, self.said, self.awaited = None, {}, set()
            return step

    def _may_pay(self, drafter: Drafter, step: Yield, mean: Mean) -> bool:
        """Whether drafts would be worth it if all were right."""
        count = max(1, round(step.tokens))
        price = _MARGIN * drafter.seconds([1] * count, [round(mean.context)] * count) + count * mean.row
        return count * step.seconds > price * step.tokens

    def _measure(self, drafter: Drafter) -> None:
        """Look again what a pass takes, once the time for that has been saved up: it may have been a bad moment."""
        if (price := drafter.seconds([1], [1])) < self._saved:
            self._saved -= price
            drafter.measure([(1, 1, 100)])

    def _prepare(self, drafter: Drafter, candidates: list[Candidate], step: Yield, room: int) -> Yield:
        with_all = self._choose(drafter, candidates, step, room)
        behind = [each for each in candidates if each.count and drafter.lag(each.seq) > _NEAR]
        if behind:
            self._catch_up(drafter, behind, step, with_all)
            candidates = [each for each in candidates if each not in behind]
            with_all = self._choose(drafter, candidates, step, room)
        if with_all is step and not behind:
            self._probe(drafter, candidates)
        self.awaited = {each.seq for each in candidates if each.count and each.seq.num_pending}
        wanted = {each.seq: each.count for each in candidates if each.count and not each.seq.num_pending}
        if wanted:
            self.said = drafter.draft(wanted)
            _leave_out(candidates, wanted.keys() - self.said.keys())
        return with_all

    def _choose(self, drafter: Drafter, candidates: list[Candidate], step: Yield, room: int) -> Yield:
        """Fill in the counts of candidates, as if the draft model knew all of them; returns the step with that."""
        for each in candidates:
            each.count, each.right, each.gained = 0, 1.0, 0.0
        alive, tokens, seconds = candidates, step.tokens, step.seconds
        lags = {each: lag if (lag := drafter.lag(each.seq)) <= _NEAR else 1 for each in candidates}
        for ahead in range(_MOST):
            chances = [(each.right * each.state.draft_chance, each) for each in alive]
            paying = [(chance, each) for chance, each in chances if chance * seconds > each.row * tokens][:room]
            if not paying:
                break
            contexts = [len(each.seq.token_ids) + ahead for _, each in paying]
            passed = [1 if ahead else lags[each] for _, each in paying]
            price = _MARGIN * drafter.seconds(passed, contexts) + sum(each.row for _, each in paying)
            gained = sum(chance for chance, _ in paying)
            if gained * seconds <= price * tokens:
                break
            for chance, each in paying:
                each.count, each.right, each.gained = ahead + 1, chance, each.gained + chance
            tokens, seconds, room = tokens + gained, seconds + price, room - len(paying)
            alive = [each for _, each in paying]
        if self._in_flight > 1:  # the step that it leaves out costs a token
            for each in candidates:
                each.count = each.count if each.gained > 1 else 0
        return Yield(tokens, seconds) if any(each.count for each in candidates) else step

    def _catch_up(self, drafter: Drafter, behind: list[Candidate], plain: Yield, drafted: Yield) -> None:
        """Have the draft model compute a chunk of those that are worth it."""
        saved = drafted.tokens * plain.seconds / plain.tokens - drafted.seconds  # by a step with all of them
        gained = drafted.tokens - plain.tokens
        room, wanted = self._chunk(drafter, plain), {}
        for each in behind:
            seq, lag = each.seq, drafter.lag(each.seq)
            left = min(seq.group.max_tokens - seq.num_output, max(_FEWEST, seq.num_output)) / (1 + each.gained)
            worth = saved * each.gained / gained * left
            if room > 0 and worth > _MARGIN * drafter.seconds([lag], [len(seq.token_ids)]):
                wanted[seq] = min(lag, room)
                room -= lag
        if wanted:
            _leave_out(behind, wanted.keys() - set(drafter.catch_up(wanted)))

    def _chunk(self, drafter: Drafter, step: Yield) -> int:
        """Tokens that the draft model computes in the time of a step, and a few if that is none."""
        one, two = drafter.seconds([1], [1]), drafter.seconds([2], [2])
        return max(2 * _NEAR, int((step.seconds - one) / max(1e-9, two - one)))

    def _probe(self, drafter: Drafter, candidates: list[Candidate]) -> None:
        """Draft all the same, of the sequence that is the least behind, once the time for that has been saved up."""
        known = [each for each in candidates if not each.seq.num_pending]
        if not known:
            return
        one = min(known, key=lambda each: drafter.lag(each.seq))
        lag, context = drafter.lag(one.seq), len(one.seq.token_ids)
        price = drafter.seconds([lag], [context]) + (_PROBED - 1) * drafter.seconds([1], [context]) + _PROBED * one.row
        if price < self._saved:
            self._saved -= price
            one.count = _PROBED

    def raised(self) -> None:
        """A step raised: sequences may start anew."""
        if self._drafter is not None:
            self._drafter.forget()

    def ended(self, seq: Sequence) -> None:
        """The sequence is gone."""
        if self._drafter is not None:
            self._drafter.ended(seq)

    def check_integrity(self) -> None:
        """As `Scheduler.check_integrity`."""
        if self._drafter is not None:
            self._drafter.check_integrity()

    def close(self) -> None:
        """Give up the draft model."""
        if self._drafter is not None:
            self._drafter.close()
            self._drafter = None


def _leave_out(candidates: list[Candidate], sequences: set[Sequence]) -> None:
    """Ask for these no more: they are too long, or there is no room."""
    for each in candidates:
        if each.seq in sequences:
            each.state.may_be_drafted = False
