"""The stream of a running request, independent of any protocol.

It is a stream of lists. Each holds the elements that arrived since the consumer was last ready:

    [Begun, Piece]  [Piece]  [Piece, Piece]  ...  [Piece, Ended]

`Begun` comes once per prompt, before its first piece. `Ended` comes once, in the list of the last pieces, so that both
can be one message to the client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from octavo.request import PackedLogprobs, Placement, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Begun:
    """A prompt has its first token.

    Attributes:
        prompt: its number in the request.
        placement: where it was sent, and why; None without a router.
        cached_tokens: prompt tokens that came from the prefix cache.
        prompt_logprobs: when asked for.
    """

    prompt: int
    placement: Placement | None
    cached_tokens: int
    prompt_logprobs: PackedLogprobs | None = None


@dataclass(slots=True)
class Piece:
    """New output of one choice: text, and its tokens.

    Attributes:
        choice: number of the sequence: those of the first prompt, then those of the second, and so on.
        text: may be empty while characters or stop strings are still incomplete.
        logprobs: one entry per token, if requested.
        finish_reason: set on a choice's last piece.
        cumulative_logprob: sum over the choice's tokens so far; see `SequenceUpdate`.
    """

    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    cumulative_logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """Every choice has ended."""


Element = Begun | Piece | Ended

Stage = Callable[[Piece], Sequence[Piece]]
"""Transforms the pieces of one choice between generation and writer. Each choice has its own, so it may keep state.

It may hold text back until a later piece, but not beyond the one with a `finish_reason`. The client gets the tokens of
the pieces that it returns, and `usage` counts them.
"""


class Whole:
    """The complete output of a request, for an answer that is not streamed.

    Attributes:
        begun: prompt's number -> `Begun`, in the order in which prompts began.
        tokens: number of generated tokens, over all choices.
    """

    def __init__(self) -> None:
        self.begun: dict[int, Begun] = {}
        self.tokens = 0
        self._choices: dict[int, tuple[Piece, list[str]]] = {}

    def add(self, elements: Sequence[Element]) -> None:
        """Add a list of the stream."""
        for element in elements:
            if isinstance(element, Piece):
                self._add(element)
            elif isinstance(element, Begun):
                self.begun[element.prompt] = element

    def choices(self) -> list[Piece]:
        """Each choice as one piece, in order."""
        found = [self._choices[choice] for choice in sorted(self._choices)]
        return [replace(piece, text="".join(texts)) for piece, texts in found]

    def _add(self, piece: Piece) -> None:
        self.tokens += len(piece.token_ids)
        if piece.choice not in self._choices:
            logprobs = None if piece.logprobs is None else list(piece.logprobs)
            own = replace(piece, token_ids=list(piece.token_ids), logprobs=logprobs)
            self._choices[piece.choice] = own, [piece.text]
            return
        known, texts = self._choices[piece.choice]
        texts.append(piece.text)
        known.token_ids += piece.token_ids
        if known.logprobs is not None:
            known.logprobs += piece.logprobs or ()
        known.finish_reason, known.stop_reason = piece.finish_reason, piece.stop_reason
        known.cumulative_logprob = piece.cumulative_logprob
