"""From an exception to what every protocol says of it in its own form: a status, a sentence, what to change."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

from octavo.errors import BadRequest, EngineDead, ModelNotReady, OctavoError, Overloaded, PromptTooLong, UnknownModel

logger = logging.getLogger("ray.serve")


class BodyTooLarge(BadRequest):
    """The request's body exceeds the gateway's `max_body_bytes`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer, or no more of it.

    Attributes:
        status: of HTTP.
        code: what kind of failure it is, more precisely than the status; None for the status' own kind.
        param: the field that is wrong.
        headers: of the response, besides its own.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


# most specific first
_KINDS: list[tuple[type[Exception], int, str | None]] = [
    (PromptTooLong, 400, "context_length_exceeded"),
    (UnknownModel, 404, "model_not_found"),
    (BodyTooLarge, 413, "body_too_large"),
    (BadRequest, 400, None),
    (Overloaded, 429, "overloaded"),
    (ModelNotReady, 503, "model_not_ready"),
    (EngineDead, 503, "engine_dead"),
    (OctavoError, 500, None),
]


def failure_of(error: Exception) -> Failure:
    """What an exception tells the client; one that nobody raised on purpose is logged and its text stays here."""
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            retry_after: float | None = getattr(error, "retry_after", None)
            headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
            return Failure(status, str(error), code, error.param if isinstance(error, BadRequest) else None, headers)
    logger.error("Unexpected error while serving a request", exc_info=error)
    return Failure(500, "internal server error; the server's log says more")
