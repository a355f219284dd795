"""What is known of one sequence whose tokens are guessed: where it repeats something, and how often that held."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.engine.recent import DRAFTED, Chances, Namespace, Origin, kind_of
from octavo.engine.suffix import LONGEST, SuffixIndex, continuation

_EXPECTED = 7
"""Length of the match that a predicted answer begins with."""

_AT_ONCE = 4096
"""Tokens of a sequence that are indexed in one step: 0.7 ms."""


@dataclass(slots=True, eq=False)
class Followed:
    """What is known of one sequence.

    Attributes:
        predicted: what its request says of its answer; its sequences share the index.
        known: tokens it had when it was looked at last.
        match: the text that went on as it does, if any, with the place in it and the length of the match.
        patience: tokens until it is looked at again.
        misses: looks in a row that found nothing worth a row.
        is_shut: whether it gets no guesses any more.
        is_drafted: whether its last guesses were a draft model's.
        may_be_drafted: whether the draft model had room for it whenever it was asked.
    """

    own: SuffixIndex
    namespace: Namespace
    predicted: SuffixIndex | None = None
    chances: Chances = field(default_factory=lambda: Chances(0.95))
    known: int = 0
    match: SuffixIndex | None = None
    place: int = 0
    length: int = 0
    patience: int = 0
    misses: int = 0
    is_shut: bool = False
    is_drafted: bool = False
    may_be_drafted: bool = True

    def expect(self, num_prompt: int) -> None:
        """Have it begin as its request predicts."""
        self.match, self.place, self.length, self.known = self.predicted, 0, _EXPECTED, num_prompt

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
        own, predicted, before = self.own, self.predicted, self.match
        own.extend(min(len(tokens) - 1, own.size + _AT_ONCE))
        near = self.place
        self.match, (self.place, self.length) = own, own.find(tokens, near if before is own else 0)
        if predicted is not None:
            predicted.extend(min(len(predicted.tokens), predicted.size + _AT_ONCE))
            place, length = predicted.find(tokens, near if before is predicted else 0)
            if length and length >= self.length:
                self.match, self.place, self.length = predicted, place, length
        if self.length < LONGEST:
            match, place, length = self.namespace.find(tokens)
            if length > self.length:
                self.match, self.place, self.length = match, place, length
        if not self.length:
            self.match = None

    def kind(self, ahead: int) -> int:
        """Of the guess that follows `ahead` right ones; a draft model's are all alike."""
        return DRAFTED if self.is_drafted else kind_of(self.length + ahead, self.origin)

    @property
    def origin(self) -> Origin:
        """Where its guesses come from."""
        if self.is_drafted:
            return "draft"
        if self.match is self.own:
            return "text"
        return "predicted" if self.match is self.predicted else "recent"

    def chance(self, ahead: int) -> float:
        """That the guess after `ahead` right ones is right."""
        kind = self.kind(ahead)
        return self.chances.of(kind, self.namespace.chance(kind), 4)

    @property
    def draft_chance(self) -> float:
        """That a draft model's token is right, those before it being so."""
        return self.chances.of(DRAFTED, self.namespace.chance(DRAFTED), 4)

    def learn(self, right: int, proposed: int) -> None:
        """Learn from guesses of which the first `right` were right; those after the first wrong one say nothing."""
        for ahead in range(min(right + 1, proposed)):
            kind = self.kind(ahead)
            self.chances.learn(kind, right=ahead < right)
            self.namespace.learn(kind, right=ahead < right)

    def was_wrong(self, ahead: int) -> None:
        """Learn that the guess after `ahead` others cannot be, or is of no use."""
        self.chances.learn(self.kind(ahead), right=False)
        self.namespace.learn(self.kind(ahead), right=False)

    def guesses(self, count: int) -> list[int]:
        """The next tokens; a text that ends with its own beginning goes on with it."""
        if self.match is None:
            return []
        return continuation(self.match.tokens, self.place, count, self.known if self.match is self.own else 0)

    def missed(self) -> None:
        """Nothing was worth a row: look less often."""
        self.misses += 1
        self.patience = 1 << min(3, self.misses >> 5)
