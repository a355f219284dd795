"""Turns an exception into a `Failure` (status, sentence, field), which each protocol writes in its own format."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from octavo.errors import (
    BadRequest,
    DeadlineMissed,
    EngineDead,
    ModelNotReady,
    OctavoError,
    Overloaded,
    PromptTooLong,
    QuotaExceeded,
    UnknownModel,
)

logger = logging.getLogger("ray.serve")


class BodyTooLarge(BadRequest):
    """The request's body exceeds the gateway's `max_body_bytes`."""


class Forbidden(BadRequest):
    """This caller may not do that."""


class NotKept(BadRequest):
    """Nothing of this caller is stored under the id that the request names."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed, before or during its answer.

    Attributes:
        status: HTTP status.
        code: kind of failure, more precise than the status; None if the status says enough.
        param: name of the wrong field, or None.
        headers: additional response headers.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> Failure:
        """The same in a protocol's own names of fields.

        Args:
            names: expressions for names of the core's -> the protocol's. One that is also a word ("stop") is a name
                where the sentence begins with it.
        """
        message, param = self.message, self.param
        if f"{param!r}" in message:  # what the client wrote: an unknown field
            return self
        for ours, theirs in names.items():
            message = re.sub(rf"(?<![\w.]){ours}\b" if "_" in ours or "." in ours else rf"^{ours}\b", theirs, message)
            param = param and re.sub(rf"^{ours}\b", theirs, param)
        return replace(self, message=message, param=param)


QUOTA = "rate_limit_exceeded"
"""Code of a refusal by the caller's quota, as OpenAI has it; others with that status are for the load of all."""

# most specific first
_KINDS: list[tuple[type[Exception], int, str | None]] = [
    (PromptTooLong, 400, "context_length_exceeded"),
    (UnknownModel, 404, "model_not_found"),
    (BodyTooLarge, 413, "body_too_large"),
    (Forbidden, 403, None),
    (NotKept, 404, "not_found"),
    (BadRequest, 400, None),
    (QuotaExceeded, 429, QUOTA),
    (Overloaded, 429, "overloaded"),
    (DeadlineMissed, 429, "deadline_missed"),
    (ModelNotReady, 503, "model_not_ready"),
    (EngineDead, 503, "engine_dead"),
    (OctavoError, 500, None),
]
ANSWERS = [(status, code or "") for _, status, code in _KINDS]
"""Statuses and codes of the errors that Octavo raises on purpose; "" where the status says enough."""


def failure_of(error: Exception) -> Failure:
    """The `Failure` that a client is told. An unexpected exception is logged, and its text is not sent."""
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            headers = _when(getattr(error, "retry_after", None))
            return Failure(status, str(error), code, error.param if isinstance(error, BadRequest) else None, headers)
    logger.error("Unexpected error while serving a request", exc_info=error)
    return Failure(500, "internal server error; the server's log says more")


def _when(seconds: float | None) -> dict[str, str]:
    """Headers that say when to come again: the standard one in whole seconds, and OpenAI's."""
    if seconds is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, math.ceil(1000 * seconds)))}
