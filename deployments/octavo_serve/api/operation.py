"""`Operation`: a request that is answered without a stream, of any protocol; `api.surface` has those that are not.

method, path, body, query ── http ──> Call ── run ──> the answer
failure ── errors ──> the protocol's error
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from octavo.config import unknown_key
from octavo.errors import BadRequest
from octavo.request import BELOW_ALL
from octavo_serve.api.access import Caller, Rules
from octavo_serve.api.bounds import MAX_FIELDS, MAX_NAME, MAX_OPTIONS
from octavo_serve.api.fields import AtMost, Name
from octavo_serve.api.listing import Listing
from octavo_serve.api.service import Service
from octavo_serve.api.surface import Errors
from octavo_serve.api.tenants import NOBODY, Tenant
from octavo_serve.api.validation import explain


class Query(BaseModel):
    """Base of query parameters: texts become the fields' types; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid")


class Wants(Protocol):
    """What headers and access rules have a say in."""

    session: str
    priority: int
    cache_salt: str
    asker: str
    tenant: Tenant
    deadline_ms: float | None


Q = TypeVar("Q", bound=Query)
W = TypeVar("W", bound=Wants)

Names = Annotated[
    list[Name], AtMost(MAX_OPTIONS), BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
"""A query parameter that may come several times, as `name=a&name=b` or `name[]=a&name[]=b`."""


@dataclass(frozen=True, slots=True)
class Content:
    """A body that is read as it comes, of operations that have no type for it."""

    media_type: str
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, validated.

    Attributes:
        body: of the operation's type; None where it takes none.
        large: it was so long that it was parsed in a thread.
        query: of the operation's type; None where it reads none.
        path: the path's parameters by name, MAX_NAME characters each at most.
        session: from the headers; "" for none.
        asker: whose turn it is when the request's comes; "" where nobody can tell.
        below: it is below all others.
        content: of an operation with a form, the body, which was not read.
        deadline_ms: from the headers; None for none.
    """

    body: Any = None
    large: bool = False
    query: Any = None
    path: Mapping[str, str] = field(default_factory=dict)
    caller: Caller = field(default_factory=Caller)
    rules: Rules = field(default_factory=Rules)
    session: str = ""
    asker: str = ""
    below: bool = False
    content: Content | None = None
    deadline_ms: float | None = None

    @property
    def tells(self) -> bool:
        """Whether the answer may tell about the cache."""
        return self.rules.tells(self.caller)

    def admit(self, asked: W) -> W:
        """Apply headers and access rules to what is asked: its session, cache namespace, priority, asker, tenant and
        deadline.

        Raises:
            BadRequest: it sets something that clients may not set.
        """
        asked.session = self.session or asked.session
        asked.priority = BELOW_ALL if self.below else min(self.rules.priority(asked.priority), BELOW_ALL - 1)
        asked.cache_salt = self.rules.cache_salt(self.caller, asked.cache_salt)
        asked.asker = self.asker
        asked.tenant = self.caller.tenant.unlimited if self.below else self.caller.tenant
        asked.deadline_ms = asked.deadline_ms if self.deadline_ms is None else self.deadline_ms
        return asked


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer that comes in chunks."""

    media_type: str
    chunks: AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        path: may have parameters, such as "/v1/models/{name:path}".
        summary: a line for the API's description.
        answers: type of the answer; None: it is text.
        media_type: of the answer.
        run: makes the answer.
        body: type of a request's body; None where there is none.
        query: type of the query parameters, whose fields are flat; None where they are not looked at.
        many: a body holds many texts, and may have as many bytes as these take.
        asks: it asks a model for something.
        form: type of the fields of a form, where that is the body: `run` reads it as it comes.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    answers: Any
    run: Callable[[Service, Call], Awaitable[Mapping[str, Any] | Streamed | Listing]]
    errors: Errors
    body: type[Any] | None = None
    query: type[Query] | None = None
    many: bool = False
    asks: bool = True
    form: type[BaseModel] | None = None
    media_type: str = "application/json"


async def answered(operation: Operation, service: Service, body: Any, tenant: Tenant = NOBODY) -> Any:
    """An operation's answer to who calls it by a handle, with nothing but a body.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    answer = await operation.run(service, Call(body=body, caller=Caller(tenant=tenant)))
    if not isinstance(answer, Listing):
        return answer
    return await service.threads.finish(answer.whole) if answer.is_large else answer.whole()


def read_query(kind: type[Q], values: Mapping[str, str | list[str]]) -> Q:
    """The query parameters of a request.

    Raises:
        BadRequest: naming the one that is wrong, missing or unknown.
    """
    if len(values) > MAX_FIELDS:
        name = next(str(name)[:MAX_NAME] for name in values if name not in kind.model_fields)
        raise BadRequest(unknown_key(name, list(kind.model_fields), "query parameter"), name)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise BadRequest(*explain(error, kind, "query parameter")) from None
