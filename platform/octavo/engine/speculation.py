"""Guesses how sequences go on from what they, and recent outputs of their cache namespace, said before, from what a
request says of its answer, and where there is one by a draft model (`octavo.engine.drafting`).

Where the last tokens of a sequence occurred earlier, what followed there is proposed (Saxena 2023's prompt lookup;
Oliaro et al. 2024's suffix decoding). It is free: no model runs. How many tokens is decided for each sequence and
step:

    chance      that a proposed token is right, by the length of the match up to it: measured in this sequence, and
                before that in its namespace
    rows        seconds that so many proposed tokens make a step longer, as measured (`octavo.engine.guess_rows`)
    step        seconds that a step of what decodes now takes without, and tokens that it yields

As many are proposed as let the step yield the most tokens in a second. Where even certain ones do not pay, as in large
batches on a CPU, nobody looks for any; a sequence where none paid is looked at every eighth token. Now and then one is
proposed all the same: else nothing would be learned of what was once bad.

With two steps in flight a sequence whose newest token is not known yet runs ahead, as without any of this. It waits
only where the guesses that could follow are worth a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from octavo.cost_model import CostModel, StepWork
from octavo.engine.behind import may_guess
from octavo.engine.drafting import Candidate, Drafting, Mean, Yield
from octavo.engine.followed import Followed
from octavo.engine.guess_rows import GuessRows
from octavo.engine.recent import Namespaces, Origin
from octavo.engine.sequence import Sequence
from octavo.engine.suffix import SuffixIndex

MOST_INDEXED = 2**20
"""Tokens that are indexed of all sequences together: 12 MB."""

MOST_PROPOSED = 32
"""Tokens of one sequence in one step."""

_MARGIN = 1.5
"""What guesses must be worth, in what their rows take. Costs and chances are estimates, and a sequence that gets ahead
of others saves their steps nothing. Recorded answers of four streams had 1.027 of the plain rate in simulated steps,
1.019 with 1.15.
"""

_PROBE_AFTER = 64
"""Steps, or guesses of a sequence, that are not worth a row between two that are tried all the same."""

_FEWER_AFTER = 16
"""Proposals of several guesses between two of which one has fewer."""

_STAIR = 4
"""Guesses of which none may pay alone, but all together: kernels take rows in fours."""

_PRICED_EVERY = 8
"""Steps after which it is looked at again what a token costs, if as many run."""

_WORTH_WAITING = 1.5
"""Tokens that a sequence must be expected to gain where it leaves a step out."""


class _Plain(NamedTuple):
    """A step without guesses.

    Attributes:
        running: sequences that have places.
        tokens: that it yields.
        seconds: that these take; prompts in the step make them no dearer.
        context: tokens that one of them attends to, on average.
    """

    running: int
    tokens: int
    seconds: float
    context: float


class Speculation:
    """A `Proposer`.

    Args:
        cost_model: of the engine's steps.
        max_num_seqs: sequences of a step.
        in_flight: steps that run at once.
        drafting: with a draft model, if there is one.
    """

    def __init__(
        self, cost_model: CostModel, max_num_seqs: int, in_flight: int, drafting: Drafting | None = None
    ) -> None:
        self._cost_model = cost_model
        self._rows = GuessRows(cost_model)
        self._most_indexed = max(4096, MOST_INDEXED // max_num_seqs)
        self._in_flight = in_flight
        self._drafting = drafting
        self._namespaces = Namespaces()
        self._plain = _Plain(0, 0, 0.0, 0.0)
        self._steps = 0  # since that was looked at
        self._guesses = 0  # of the step
        self._tokens = self._seconds = 0.0  # of the step, with what is proposed in it
        self._shut = 0  # steps in a row in which even a certain token was not worth a row
        self._probes = False  # whether the next guess is verified whatever it is worth
        self._several = 0  # proposals of more than one
        self._checking = 0.0  # seconds that one guess under a grammar takes before the step

    def begin(self, running: list[Sequence], room: int) -> bool:
        """As in `Proposer`."""
        if not self._cost_model.ready:
            return False
        self._steps += 1
        plain = self._plain
        if self._steps >= _PRICED_EVERY or plain.running != len(running) or not plain.tokens:
            self._price(running)
        self._tokens, self._seconds, self._guesses = self._plain.tokens, self._plain.seconds, 0
        pays = any(self._seconds * count > self._rows_take(count) * self._tokens for count in range(1, _STAIR + 1))
        self._shut = 0 if pays else self._shut + 1
        self._probes = self._shut > 0
        if self._drafting is not None:
            self._draft(self._drafting, running, room if pays else 0)
            self._guesses = sum(map(len, self._drafting.said.values()))
        return self._tokens > 0 and self._shut % _PROBE_AFTER == 0

    def follows(self, seq: Sequence) -> bool:
        """As in `Proposer`."""
        state = self._followed(seq)
        if state.is_shut:
            return False
        if self._drafting is not None and (seq in self._drafting.said or seq in self._drafting.awaited):
            return True
        state.patience -= 1
        if state.patience > 0:
            return False
        return not seq.num_pending or self._is_worth_waiting(seq, state)

    def propose(self, seq: Sequence, most: int) -> list[int]:
        """As in `Proposer`."""
        state = seq.followed
        assert state is not None, "it is followed"
        if self._drafting is not None and (said := self._drafting.said.get(seq)):
            state.is_drafted = True
            return said
        state.is_drafted = False
        state.look(seq.token_ids)
        if state.match is None:
            state.missed()
            return []
        count = self._worth(state, min(most, MOST_PROPOSED), 0.0 if seq.constraint is None else self._checking)
        if not count:
            state.missed()
            if state.misses % _PROBE_AFTER and not self._probes:
                return []
            count = 1
        elif count > 1:  # fewer may be as good: what they take must stay known
            self._several += 1
            count = 1 + self._several // _FEWER_AFTER % count if self._several % _FEWER_AFTER == 0 else count
        self._probes = False  # one sequence is enough
        return state.guesses(count)

    def verified(self, seq: Sequence, right: int, proposed: int) -> Origin:
        """As in `Proposer`."""
        state = seq.followed
        assert state is not None, "something was proposed for it"
        state.learn(right, proposed)
        if right:
            state.misses = 0
        return state.origin

    def took(self, work: StepWork, proposed: int, seconds: float) -> None:
        """As in `Proposer`."""
        self._rows.took(work, proposed, seconds)

    def checked(self, seq: Sequence, kept: int, proposed: int, seconds: float) -> None:
        """As in `Proposer`."""
        self._checking += (seconds / proposed - self._checking) / 16
        if kept < proposed and seq.followed is not None:
            seq.followed.was_wrong(kept)

    def raised(self, sequences: Iterable[Sequence]) -> None:
        """As in `Proposer`."""
        for seq in sequences:
            if seq.followed is not None:
                seq.followed.is_shut = True
        if self._drafting is not None:
            self._drafting.raised()

    def ended(self, seq: Sequence) -> None:
        """As in `Proposer`."""
        if seq.num_output:
            self._namespaces.of(seq.group.origin.root).add(seq.token_ids[seq.num_prompt :])
        seq.followed = None
        if self._drafting is not None:
            self._drafting.ended(seq)

    def check_integrity(self) -> None:
        """As in `Proposer`."""
        if self._drafting is not None:
            self._drafting.check_integrity()

    def close(self) -> None:
        """As in `Proposer`."""
        if self._drafting is not None:
            self._drafting.close()

    def _draft(self, drafting: Drafting, running: list[Sequence], room: int) -> None:
        mean = Mean(self._rows_take(_STAIR) / _STAIR, self._plain.context)
        step = Yield(self._tokens, self._seconds)
        self._tokens, self._seconds = drafting.prepare(lambda: self._candidates(running), step, room, mean)

    def _candidates(self, running: list[Sequence]) -> Iterable[Candidate]:
        """Those that a draft model may be asked for: where text does not say more, for nothing."""
        for seq in running:
            if not seq.is_decoding or seq.is_verifying or seq.group.beams is not None or not may_guess(seq):
                continue
            state = self._followed(seq)
            if state.is_shut or not state.may_be_drafted or seq.group.max_tokens - seq.num_output - seq.num_pending < 2:
                continue
            state.is_drafted = False
            state.look(seq.token_ids)
            if state.match is None or state.chance(0) < state.draft_chance:
                yield Candidate(seq, state, self._row_of(seq))

    def _followed(self, seq: Sequence) -> Followed:
        state = seq.followed
        if state is None:
            state = seq.followed = self._follow(seq)
        return state

    def _follow(self, seq: Sequence) -> Followed:
        most = min(self._most_indexed, seq.num_prompt + seq.group.max_tokens)
        state = Followed(SuffixIndex(seq.token_ids, most), self._namespaces.of(seq.group.origin.root))
        if text := seq.group.request.predicted:
            siblings = (other.followed for other in seq.group.sequences if other.followed is not None)
            shared = next(siblings, None)
            state.predicted = SuffixIndex(text, self._most_indexed) if shared is None else shared.predicted
            state.expect(seq.num_prompt)
        return state

    def _price(self, running: list[Sequence]) -> None:
        """Look what a step takes of those that decode, and what guesses take beside it."""
        known = [seq.num_known for seq in running if seq.is_decoding]
        count, context = len(known), sum(known)
        work = StepWork(count, count, context, context, has_prompts=False)
        self._rows.price(work)
        self._plain = _Plain(len(running), count, self._rows.without(work), context / max(1, count))
        self._steps = 0

    def _row_of(self, seq: Sequence) -> float:
        """What one of a few more rows of a sequence must be worth, in seconds."""
        return self._rows_take(_STAIR) / _STAIR + (0.0 if seq.constraint is None else self._checking)

    def _rows_take(self, guesses: int) -> float:
        """What so many more rows must be worth, in seconds."""
        return self._rows.seconds(guesses) * _MARGIN

    def _worth(self, state: Followed, most: int, checking: float) -> int:
        """How many guesses of a sequence let the step yield the most, beside what was proposed before.

        Args:
            checking: seconds that each takes before the step.
        """
        tokens, seconds, before = self._tokens, self._seconds, self._rows_take(self._guesses)
        best, right, gained = (0, tokens, seconds), 1.0, 0.0
        for count in range(1, most + 1):
            right *= state.chance(count - 1)
            gained += right
            longer = seconds + self._rows_take(self._guesses + count) - before + count * checking
            if (tokens + gained) * best[2] > best[1] * longer:
                best = count, tokens + gained, longer
            elif count - best[0] >= _STAIR:
                break
        if self._in_flight > 1 and best[1] - tokens < 1:  # the step that it leaves out costs a token
            return 0
        count, self._tokens, self._seconds = best
        self._guesses += count
        return count

    def _is_worth_waiting(self, seq: Sequence, state: Followed) -> bool:
        """Whether the guesses after a token that is not known yet, if they are right, are worth a step."""
        state.look(seq.token_ids)
        if state.match is None:
            state.missed()
            return False
        right, gained = state.chance(0), 0.0
        for ahead in range(1, MOST_PROPOSED // 2):
            right *= state.chance(ahead)
            gained += right
        worth = gained > _WORTH_WAITING
        if not worth:
            state.missed()
        return worth
