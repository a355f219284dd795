"""Several tokens of a decoding sequence in one step: somebody proposes them, sampling verifies them.

    computed ... | newest | proposed 0 | proposed 1 | ... | proposed k - 1
                    row 0      row 1        row 2             row k

Each row samples the token that follows. Random numbers are counted by position, so a row samples what the plain run
would, as long as all tokens before it are those of the plain run. So rows are kept up to and including the first whose
token is not the one proposed there. What is kept is the plain run's output, whatever is proposed (in speculative
decoding by Leviathan et al. 2023, a rejection rule takes the place of this comparison). Keys and values of refused
tokens are given back.

Proposals need the newest token. So a sequence is not in two steps at once while a proposer follows it: it waits for the
result of one before it is planned again. A proposer is asked for each step anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from octavo.cost_model import StepWork
from octavo.engine.recent import Origin
from octavo.engine.sequence import Sequence


class Proposer(Protocol):
    """Guesses how sequences go on."""

    def begin(self, running: list[Sequence], room: int) -> bool:
        """Whether anything may be proposed in the step that is planned now; else it is asked nothing more.

        Args:
            running: sequences that have places.
            room: tokens that may be proposed in all, or fewer.
        """
        ...

    def follows(self, seq: Sequence) -> bool:
        """Whether it is to be asked for this sequence. Where its newest token is not known, it then waits for that."""
        ...

    def propose(self, seq: Sequence, most: int) -> list[int]:
        """Tokens that may follow `seq.token_ids`; all but the first `most` (at least 1) are ignored."""
        ...

    def verified(self, seq: Sequence, right: int, proposed: int) -> Origin:
        """Of so many tokens that were proposed, so many were right, and the one after those was wrong.

        Returns:
            where they came from.
        """
        ...

    def took(self, work: StepWork, proposed: int, seconds: float) -> None:
        """A step with so many proposed tokens, or none, which `work` counts, took so long; told before they are
        `verified`."""
        ...

    def checked(self, seq: Sequence, kept: int, proposed: int, seconds: float) -> None:
        """Of so many tokens that were proposed where a grammar holds, it lets the first `kept` be verified.

        Args:
            seconds: that it took to find out.
        """
        ...

    def raised(self, sequences: Iterable[Sequence]) -> None:
        """A step that verified tokens of these raised: nothing more is proposed for them."""
        ...

    def ended(self, seq: Sequence) -> None:
        """The sequence is gone."""
        ...

    def check_integrity(self) -> None:
        """Prove that none of its blocks leaked."""
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


def proposals(proposer: Proposer, seq: Sequence, most: int, vocab_size: int) -> list[int]:
    """What is proposed for a sequence: at most `most` tokens, up to the first that does not exist.

    The last token that a request may have is sampled, so fewer than its `max_tokens` leaves are proposed.
    """
    most = min(most, seq.group.max_tokens - seq.num_output - 1)
    proposed = proposer.propose(seq, most)[:most] if most > 0 else []
    wrong = (place for place, token in enumerate(proposed) if not 0 <= token < vocab_size)
    return proposed[: next(wrong, most)]
