"""`Surface`: the core's interface to a protocol. Each protocol has a folder below `octavo_serve.surfaces`.

body ── ask ──> Asked ── Service.job ──> Job ── generation.run ──> Begun, Piece, ... ── Writer ──> events, or answer
                                                                                          │
failure ── errors ──> the protocol's error                          framing ──> bytes of a stream
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from octavo.errors import BadRequest
from octavo_serve.api.body import B
from octavo_serve.api.bounds import BodyBounds, Limits
from octavo_serve.api.failures import QUOTA, Failure
from octavo_serve.api.jobs import Asked, Job
from octavo_serve.api.pieces import Begun, Element, Piece, Whole
from octavo_serve.api.quotas import Standing

if TYPE_CHECKING:
    from octavo_serve.api.operation import Call, Operation, Streamed
    from octavo_serve.api.service import Service

A = TypeVar("A", bound=Mapping[str, Any] | Sequence[Mapping[str, Any]])
E = TypeVar("E", bound=Mapping[str, Any])


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return msgspec.json.encode(value)


def plain_frame(event: Mapping[str, Any], json: bytes) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + json + b"\n\n"


def named_frame(event: Mapping[str, Any], json: bytes) -> bytes:
    """A server-sent event that is named by its type."""
    return b"event: " + str(event.get("type", "error")).encode() + b"\ndata: " + json + b"\n\n"


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer's bytes."""

    content: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Writer(ABC, Generic[A, E]):
    """Turns one request's stream into a protocol's events, or into its whole answer.

    Its methods may be called in a thread, one at a time.

    Attributes:
        tells: whether the client may be told about cached tokens.
        begun: prompt's number -> its `Begun`.
    """

    def __init__(self, job: Job, tells: bool) -> None:
        self.job = job
        self.tells = tells
        self.begun: dict[int, Begun] = {}

    def events(self, element: Element) -> list[E]:
        """The events to send for an element; may be empty."""
        if isinstance(element, Piece):
            return self.piece(element)
        if isinstance(element, Begun):
            self.begun[element.prompt] = element
            return self.begin(element)
        return self.end()

    def gathered(self) -> Whole:
        """What the output of a request that does not stream is added to."""
        return Whole()

    async def settle(self) -> None:
        """Awaited once all events, or the answer, are written, before the last of them is sent."""
        return

    def failed(self, failure: Failure) -> list[E] | None:
        """The last events of a stream that has begun and cannot go on; None: the protocol's error is its last event."""
        return None

    def answer(self, whole: Whole) -> A:
        """The whole answer, for a request that does not stream."""
        self.begun = whole.begun
        return self.whole(whole)

    def encoded(self, answer: A, to_json: Callable[[Any], bytes]) -> Encoded:
        """An answer's bytes; JSON, where the protocol knows nothing else."""
        return Encoded(to_json(answer))

    def is_large(self, element: Element) -> bool:
        """Whether making an element's events and their JSON takes so long that it must run in a thread."""
        return False

    def begin(self, begun: Begun) -> list[E]:
        """Events for a prompt that has begun."""
        return []

    @abstractmethod
    def piece(self, piece: Piece) -> list[E]:
        """Events for a piece of a choice."""

    def end(self) -> list[E]:
        """Events for the end of all choices."""
        return []

    @abstractmethod
    def whole(self, whole: Whole) -> A:
        """The answer, as in `answer`; `self.begun` is set."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream's events become bytes.

    Attributes:
        frame: makes an event's bytes from the event and its JSON.
        end: bytes after the last event.
        describe: makes the stream's schema from the schemas of an event and of an error (see `http.describe`).
    """

    media_type: str
    frame: Callable[[Mapping[str, Any], bytes], bytes]
    end: bytes
    describe: Callable[[Any, Any], dict[str, Any]]


def _describe_plain(event: Any, error: Any) -> dict[str, Any]:
    data = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [event, error]}}
    return {
        "type": "object",
        "description": "Server-sent events such as this. An error after the first event is an event, too.",
        "properties": {"data": {"type": "string", **data}},
        "required": ["data"],
    }


PLAIN = Framing("text/event-stream", plain_frame, b"", _describe_plain)
"""Events without names, and nothing after the last one."""


@dataclass(frozen=True, slots=True)
class Raw(Generic[B]):
    """Bodies that hold more than JSON; a writer's `encoded` makes such answers.

    Attributes:
        media_type: of both.
        read: makes the validated body from headers and bytes. It runs in a thread where there are many.
    """

    media_type: str
    read: Callable[[Mapping[str, str], bytes, BodyBounds], B]


def x_ratelimit(standings: Sequence[Standing]) -> dict[str, str]:
    """OpenAI's headers of quotas, which most others have taken over."""
    found = {}
    for one in standings:
        found[f"x-ratelimit-limit-{one.kind}"] = str(one.limit)
        found[f"x-ratelimit-remaining-{one.kind}"] = str(one.remaining)
        found[f"x-ratelimit-reset-{one.kind}"] = f"{one.reset:.3f}s"
    return found


@dataclass(frozen=True, slots=True)
class Errors:
    """A protocol's error bodies.

    Attributes:
        kind: type of the bodies that `body` makes.
        statuses: HTTP statuses that the protocol has for others.
        limits: headers that tell what is left of the caller's quotas.
    """

    kind: type[Any]
    body: Callable[[Failure], Mapping[str, Any]]
    statuses: Mapping[int, int] = field(default_factory=dict, hash=False)
    limits: Callable[[Sequence[Standing]], Mapping[str, str]] = x_ratelimit

    def status(self, status: int, code: str | None = None) -> int:
        """The protocol's own HTTP status for one of the core's; that of a quota is the same in all."""
        return status if code == QUOTA else self.statuses.get(status, status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface(Generic[B, A, E]):
    """One protocol for requesting text from a model.

    Attributes:
        path: its HTTP path, which may have parameters, such as "/models/{model:path}"; the method is POST.
        summary: a line for the API's description.
        body: type of a request's body.
        answers, events: types of an answer, and of a stream's event. None: every answer is a stream, or none is.
        streams: tells whether a body asks for a stream.
        model_of: the model that a path's parameters name, which the body then does not; None: the path names none.
        raw: bodies and answers that are not JSON alone; None: all are.
        ask: turns a body into an `Asked`.
        recall: completes what was asked with what is kept of the caller's earlier requests. Its second argument is the
            caller's name. None: nothing is.
        instead: answers requests for a model that writes no text; None: they are told that it does not.
        detach: lets a request run without its client, if that is what it asks for, and returns what the client gets at
            once; None for others. None: no request does.
        writer: makes the writer of a request; its last argument is the writer's `tells`.
        fails_in_stream: what is wrong with a request for a stream is an event, with status 200: for clients that read
            nothing else.
        large_json: writes large events and answers; it runs in a thread and lets other threads run in between.
    """

    path: str
    summary: str
    body: type[B]
    answers: type[A] | None
    events: type[E] | None
    streams: Callable[[B], bool]
    ask: Callable[[B, Limits], Asked]
    writer: Callable[[B, Job, bool], Writer[A, E]]
    errors: Errors
    framing: Framing = PLAIN
    model_of: Callable[[Mapping[str, str]], str] | None = None
    raw: Raw[B] | None = None
    fails_in_stream: bool = False
    large_json: Callable[[Any], bytes] = to_json
    recall: Callable[[Service, str, B, Asked], Awaitable[None]] | None = None
    detach: Callable[[Service, B, Writer[A, E]], Awaitable[A | Streamed | None]] | None = None
    instead: Operation | None = None

    async def asked(self, service: Service, call: Call) -> Asked:
        """What a request asks for, with what is kept of earlier ones.

        Raises:
            BadRequest, Overloaded.
        """
        asked = call.admit(await self._ask(service, call))
        asked.owner = call.caller.name
        if self.model_of is not None:
            asked.model = self._named(self.model_of(call.path), asked.model)
        if self.recall is not None:
            await self.recall(service, call.caller.name, call.body, asked)
        return asked

    async def _ask(self, service: Service, call: Call) -> Asked:
        """`ask`; of a long body in a thread too, for it validates what types do not: 2 MB of it took KServe's 90 ms."""
        if call.large:
            return await service.body_threads.finish(self.ask, call.body, service.limits)
        return self.ask(call.body, service.limits)

    @staticmethod
    def _named(by_path: str, by_body: str | None) -> str:
        if by_body not in (None, by_path):
            raise BadRequest(f"the path names the model {by_path!r:.80}, the body {by_body!r:.80}", "model")
        return by_path
