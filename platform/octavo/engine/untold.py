"""Tokens that a sequence has and nobody was told of: forced ones, whose log probabilities a step has yet to compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from octavo.request import SequenceUpdate
from octavo.step import LogprobRow


@dataclass(slots=True)
class Untold:
    """An update that waits.

    Attributes:
        update: what is to be told; the tokens that wait are its last.
        first: index of the first of these among the sequence's tokens.
        count: how many they are; 0 where no log probabilities are needed.
        rows: their log probabilities, as far as they are known. Sequences that start from one prompt share them.
    """

    update: SequenceUpdate
    first: int
    count: int
    rows: list[LogprobRow] = field(default_factory=list)

    @property
    def next(self) -> int:
        """Index of the first token whose log probability is not known."""
        return self.first + len(self.rows)

    @property
    def is_complete(self) -> bool:
        """Whether all are known."""
        return len(self.rows) == self.count

    def wanted(self, num_computed: int, count: int) -> range:
        """Of a step that computes so many tokens: indices of the tokens whose log probabilities it is to say."""
        return range(max(self.next, num_computed + 1), min(self.first + self.count, num_computed + count + 1))

    def take(self, start: int, rows: Iterable[LogprobRow]) -> None:
        """Add those of the tokens from `start` on; what is known already, or comes too early, is left out."""
        for index, row in enumerate(rows, start):
            if index == self.next:
                self.rows.append(row)

    def told(self, cumulative: float, score: Callable[[SequenceUpdate, LogprobRow], None]) -> SequenceUpdate:
        """The update, with its log probabilities."""
        assert self.is_complete, "the step that samples the next token computes them"
        self.update.cumulative_logprob = cumulative
        for row in self.rows:
            score(self.update, row)
        return self.update

    def of(self, index: int) -> Untold:
        """The same for another sequence of the request, with the same tokens."""
        update = dataclasses.replace(self.update, index=index, token_ids=list(self.update.token_ids))
        return dataclasses.replace(self, update=update)
