"""The stream of a running request, independent of any protocol.

It is a stream of lists. Each holds the elements that arrived since the consumer was last ready:

    [Begun, Piece]  [Piece]  [Piece, Piece]  ...  [Piece, Ended]

`Begun` comes once per prompt, before its first piece. `Ended` comes once, in the list of the last pieces, so that both
can be one message to the client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

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
class CallPart:
    """More of a call of a tool.

    Attributes:
        index: of the call in its choice.
        name, id: where the call begins; "" in what follows.
        arguments: JSON, or a part of it.
    """

    index: int
    name: str = ""
    id: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Piece:
    """New output of one choice: text, and its tokens.

    Attributes:
        choice: number of the sequence: those of the first prompt, then those of the second, and so on.
        text: may be empty while characters or stop strings are still incomplete.
        logprobs: one entry per token, if requested.
        finish_reason: set on a choice's last piece.
        cumulative_logprob: sum over the choice's tokens so far; see `SequenceUpdate`.
        reasoning: what a stage told from the text, and so are `calls`.
        reasoning_tokens: of those so far, how many are reasoning beyond what earlier pieces said.
        forced_tokens: of its tokens, how many were known without being sampled; all or none where a job tells origins.
        lengths: characters of the text that came with each token, for a stage; the rest came with the end.
    """

    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    cumulative_logprob: float = 0.0
    reasoning: str = ""
    calls: Sequence[CallPart] = ()
    reasoning_tokens: int = 0
    forced_tokens: int = 0
    lengths: Sequence[int] = ()


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
        reasoning_tokens: number of those that are reasoning.
    """

    def __init__(self) -> None:
        self.begun: dict[int, Begun] = {}
        self.tokens = 0
        self.reasoning_tokens = 0
        self._choices: dict[int, _Choice] = {}

    def add(self, elements: Sequence[Element]) -> None:
        """Add a list of the stream."""
        for element in elements:
            if isinstance(element, Piece):
                self._add(element)
            elif isinstance(element, Begun):
                self.begun[element.prompt] = element

    def choices(self) -> list[Piece]:
        """Each choice as one piece, in order."""
        return [self._choices[choice].whole() for choice in sorted(self._choices)]

    def _add(self, piece: Piece) -> None:
        self.tokens += len(piece.token_ids)
        self.reasoning_tokens += piece.reasoning_tokens
        if (choice := self._choices.get(piece.choice)) is None:
            self._choices[piece.choice] = _Choice(piece)
        else:
            choice.add(piece)


class _Choice:
    """One choice's pieces, put together at the end."""

    def __init__(self, first: Piece) -> None:
        logprobs = None if first.logprobs is None else list(first.logprobs)
        self._piece = replace(first, token_ids=list(first.token_ids), logprobs=logprobs)
        self._texts = [first.text]
        self._reasoning = [first.reasoning]
        self._calls = list(first.calls)

    def add(self, piece: Piece) -> None:
        known = self._piece
        self._texts.append(piece.text)
        if piece.reasoning:
            self._reasoning.append(piece.reasoning)
        if piece.calls:
            self._calls += piece.calls
        known.token_ids += piece.token_ids
        known.forced_tokens += piece.forced_tokens
        if known.logprobs is not None:
            known.logprobs += piece.logprobs or ()
        known.finish_reason, known.stop_reason = piece.finish_reason, piece.stop_reason
        known.cumulative_logprob = piece.cumulative_logprob

    def whole(self) -> Piece:
        calls: list[CallPart] = []
        for _, parts in groupby(self._calls, lambda part: part.index):
            first, *more = parts
            arguments = "".join([first.arguments, *(part.arguments for part in more)])
            calls.append(replace(first, arguments=arguments))
        return replace(self._piece, text="".join(self._texts), reasoning="".join(self._reasoning), calls=tuple(calls))
