"""What a protocol is to the core: a `Surface`. Each has a folder of its own below `octavo_serve.surfaces`.

body ── ask ──> Asked ── Service.job ──> Job ── generation.run ──> Begun, Piece, ... ── Writer ──> events, or answer
                                                                                          │
failure ── errors ──> the protocol's error                          framing ──> bytes of a stream
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from octavo_serve.api.body import B
from octavo_serve.api.bounds import Limits
from octavo_serve.api.failures import Failure
from octavo_serve.api.jobs import Asked, Job
from octavo_serve.api.pieces import Begun, Element, Piece, Whole

A = TypeVar("A", bound=Mapping[str, Any])
E = TypeVar("E", bound=Mapping[str, Any])


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return msgspec.json.encode(value)


class Writer(ABC, Generic[A, E]):
    """Turns what one request says into a protocol's events, or into its answer.

    Its methods may be called in a thread, one at a time.

    Attributes:
        tells: whether the client may hear what was cached.
        begun: by the prompt's number.
    """

    def __init__(self, job: Job, tells: bool) -> None:
        self.job = job
        self.tells = tells
        self.begun: dict[int, Begun] = {}

    def events(self, element: Element) -> list[E]:
        """What is sent because of it; may be nothing."""
        if isinstance(element, Piece):
            return self.piece(element)
        if isinstance(element, Begun):
            self.begun[element.prompt] = element
            return self.begin(element)
        return self.end()

    def answer(self, whole: Whole) -> A:
        """The answer that is not streamed."""
        self.begun = whole.begun
        return self.whole(whole)

    def is_large(self, element: Element) -> bool:
        """Whether `events`, and writing them as JSON, belongs into a thread; false where that is said nowhere."""
        return False

    def begin(self, begun: Begun) -> list[E]:
        """A prompt has begun."""
        return []

    @abstractmethod
    def piece(self, piece: Piece) -> list[E]:
        """More of a choice."""

    def end(self) -> list[E]:
        """All have ended."""
        return []

    @abstractmethod
    def whole(self, whole: Whole) -> A:
        """As `answer`."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream's events become bytes.

    Attributes:
        frame: an event's bytes, from it and its JSON.
        end: what follows the last event.
        describe: the stream's schema, from those of an event and of an error (see `http.describe`).
    """

    media_type: str
    frame: Callable[[Mapping[str, Any], bytes], bytes]
    end: bytes
    describe: Callable[[Any, Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Errors:
    """How a protocol says what went wrong.

    Attributes:
        kind: the type that `body` makes.
    """

    kind: type[Any]
    body: Callable[[Failure], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface(Generic[B, A, E]):
    """One protocol's way to ask a model for text.

    Attributes:
        path: of its HTTP method, POST.
        summary: for the API's description.
        body: what a request holds.
        answers, events: types of an answer, and of an event of its stream.
        streams: whether a body asks for a stream.
        ask: what a body asks for.
        writer: of one request's answer, and whether the client may hear what was cached.
        large_json: writes an event or an answer in a thread, bit by bit.
    """

    path: str
    summary: str
    body: type[B]
    answers: type[A]
    events: type[E]
    streams: Callable[[B], bool]
    ask: Callable[[B, Limits], Asked]
    writer: Callable[[B, Job, bool], Writer[A, E]]
    errors: Errors
    framing: Framing
    large_json: Callable[[Any], bytes] = to_json
