"""Guesses how sequences go on from what they, and recent outputs of their cache namespace, said before.

Where the last tokens of a sequence occurred earlier, what followed there is proposed (Saxena 2023's prompt lookup;
Oliaro et al. 2024's suffix decoding). It is free: no model runs. How many tokens is decided for each sequence and step:

    chance      that a proposed token is right, by the length of the match: measured in this sequence, and before that
                in its namespace
    row         seconds that one more proposed token makes a step longer, by the cost model
    price       seconds that a token takes without: a step of what decodes now, by the tokens it yields

A token is proposed while the chance that it and all before it are right, times the price, is more than `row`. Where
even certain ones do not pay, as in large batches on a CPU, nobody looks for any; a sequence where none paid is looked
at every eighth token. Now and then one is proposed all the same: else nothing would be learned of what was once bad.

With two steps in flight a sequence whose newest token is not known yet runs ahead, as without any of this. It waits
only where the guesses that could follow are worth a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.cost_model import CostModel, StepWork
from octavo.engine.recent import Chances, Namespace, Namespaces, kind_of
from octavo.engine.sequence import Sequence
from octavo.engine.suffix import LONGEST, SuffixIndex, continuation

MOST_INDEXED = 2**20
"""Tokens that are indexed of all sequences together: 12 MB."""

MOST_PROPOSED = 32
"""Tokens of one sequence in one step."""

_MARGIN = 1.1
"""What a token must be worth, in rows: costs and chances are estimates."""

_AT_ONCE = 4096
"""Tokens of a sequence that are indexed in one step: 0.7 ms."""

_PROBE_AFTER = 64
"""Steps, or guesses of a sequence, that are not worth a row between two that are tried all the same."""

_WORTH_WAITING = 1.5
"""Tokens that a sequence must be expected to gain where it leaves a step out."""


@dataclass(slots=True, eq=False)
class Followed:
    """What is known of one sequence.

    Attributes:
        known: tokens it had when it was looked at last.
        match: the text that went on as it does, if any, with the place in it and the length of the match.
        patience: tokens until it is looked at again.
        misses: looks in a row that found nothing worth a row.
        kind: of what was proposed last.
    """

    own: SuffixIndex
    namespace: Namespace
    chances: Chances = field(default_factory=lambda: Chances(0.9))
    known: int = 0
    match: SuffixIndex | None = None
    place: int = 0
    length: int = 0
    patience: int = 0
    misses: int = 0
    kind: int = 0

    def look(self, tokens: list[int]) -> None:
        """Find what the sequence repeats, or go on in it."""
        if self.match is None or not self._goes_on(self.match, tokens):
            self._find(tokens)
        self.known = len(tokens)

    def _goes_on(self, match: SuffixIndex, tokens: list[int]) -> bool:
        new = tokens[self.known :]
        if list(match.tokens[self.place : self.place + len(new)]) != new:
            return False
        self.place += len(new)
        self.length += len(new)
        return self.place < len(match.tokens)

    def _find(self, tokens: list[int]) -> None:
        own = self.own
        own.extend(min(len(tokens) - 1, own.size + _AT_ONCE))
        near = self.place if self.match is own else 0
        self.match, (self.place, self.length) = own, own.find(tokens, near)
        if self.length < LONGEST:
            match, place, length = self.namespace.find(tokens)
            if length > self.length:
                self.match, self.place, self.length = match, place, length
        if not self.length:
            self.match = None

    def chance(self) -> float:
        """That the next token is the one that followed before."""
        self.kind = kind_of(self.length, recent=self.match is not self.own)
        return self.chances.of(self.kind, self.namespace.chance(self.kind), 4)

    def guesses(self, count: int) -> list[int]:
        """The next tokens; a text that ends with its own beginning goes on with it."""
        if self.match is None:
            return []
        return continuation(self.match.tokens, self.place, count, self.known if self.match is self.own else 0)

    def missed(self) -> None:
        """Nothing was worth a row: look less often."""
        self.misses += 1
        self.patience = 1 << min(3, self.misses >> 5)


class Speculation:
    """A `Proposer`.

    Args:
        cost_model: of the engine's steps.
        max_num_seqs: sequences of a step.
        in_flight: steps that run at once.
    """

    def __init__(self, cost_model: CostModel, max_num_seqs: int, in_flight: int) -> None:
        self._cost_model = cost_model
        self._most_indexed = max(4096, MOST_INDEXED // max_num_seqs)
        self._in_flight = in_flight
        self._namespaces = Namespaces()
        self._running: list[Sequence] = []
        self._tokens = self._seconds = 0.0  # of the step; 0: not asked for yet
        self._shut = 0  # steps in a row in which even a certain token was not worth a row
        self._probes = False  # whether the next guess is verified whatever it is worth

    def begin(self, running: list[Sequence]) -> bool:
        """As in `Proposer`."""
        cost = self._cost_model.published
        self._running, self._tokens = running, 0.0
        row = cost.token + cost.sequence
        if row * len(running) * _MARGIN < cost.step + row * len(running):
            self._shut = 0
        else:
            self._shut += self._cost_model.ready
        self._probes = self._shut > 0
        return self._cost_model.ready and self._shut % _PROBE_AFTER == 0

    def follows(self, seq: Sequence) -> bool:
        """As in `Proposer`."""
        state = seq.followed
        if state is None:
            state = seq.followed = self._follow(seq)
        state.patience -= 1
        if state.patience > 0:
            return False
        return not seq.num_pending or self._is_worth_waiting(seq, state)

    def propose(self, seq: Sequence, most: int) -> list[int]:
        """As in `Proposer`."""
        state = seq.followed
        assert state is not None, "it is followed"
        state.look(seq.token_ids)
        if state.match is None:
            state.missed()
            return []
        count = self._worth(state.chance(), min(most, MOST_PROPOSED), seq.num_known)
        if not count:
            state.missed()
            if state.misses % _PROBE_AFTER and not self._probes:
                return []
            count = 1
        self._probes = False  # one sequence is enough
        return state.guesses(count)

    def verified(self, seq: Sequence, right: int, proposed: int) -> None:
        """As in `Proposer`."""
        state = seq.followed
        assert state is not None, "something was proposed for it"
        tried = right + (right < proposed)
        state.chances.learn(state.kind, right, tried)
        state.namespace.learn(state.kind, right, tried)
        if right:
            state.misses = 0

    def ended(self, seq: Sequence) -> None:
        """As in `Proposer`."""
        if seq.num_output:
            self._namespaces.of(seq.group.root).add(seq.token_ids[seq.num_prompt :])
        seq.followed = None

    def _follow(self, seq: Sequence) -> Followed:
        most = min(self._most_indexed, seq.num_prompt + seq.group.max_tokens)
        return Followed(SuffixIndex(seq.token_ids, most), self._namespaces.of(seq.group.root))

    def _worth(self, chance: float, most: int, context: int) -> int:
        """How many tokens are worth a row each, the earlier ones being right, beside what was proposed before."""
        if not self._tokens:
            self._price()
        cost = self._cost_model.published
        row = (cost.token + cost.sequence + cost.attended * context) * _MARGIN
        tokens, seconds, gained, right, count = self._tokens, self._seconds, 0.0, chance, 0
        while count < most and right * seconds > row * tokens:
            count, gained, tokens, seconds = count + 1, gained + right, tokens + right, seconds + row
            right *= chance
        if self._in_flight > 1 and gained < 1:  # the step that it leaves out costs a token
            return 0
        self._tokens, self._seconds = tokens, seconds
        return count

    def _price(self) -> None:
        """What the step is without proposals; prompts in it make its tokens no dearer."""
        decoding = [seq for seq in self._running if seq.is_decoding]
        context = sum(seq.num_known for seq in decoding)
        self._tokens = len(decoding)
        self._seconds = self._cost_model.predict(StepWork(len(decoding), len(decoding), context, context, False))

    def _is_worth_waiting(self, seq: Sequence, state: Followed) -> bool:
        """Whether the guesses after a token that is not known yet, if they are right, are worth a step."""
        state.look(seq.token_ids)
        if state.match is None:
            state.missed()
            return False
        chance, gained, right = state.chance(), 0.0, 1.0
        for _ in range(MOST_PROPOSED // 2):
            right *= chance
            gained += right
        worth = chance * gained > _WORTH_WAITING
        if not worth:
            state.missed()
        return worth
