"""From an exception to OpenAI's error body and an HTTP status."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import msgspec
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.errors import BadRequest, EngineDead, ModelNotReady, OctavoError, Overloaded, PromptTooLong, UnknownModel

logger = logging.getLogger("ray.serve")


class BodyTooLarge(BadRequest):
    """The request's body exceeds the gateway's `max_body_bytes`."""


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error on its way to the client: HTTP status, body, extra headers."""

    status: int
    body: ErrorBody
    headers: dict[str, str] = field(default_factory=dict)


# most specific first
_KINDS: list[tuple[type[Exception], int, str, str | None]] = [
    (PromptTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (UnknownModel, 404, "invalid_request_error", "model_not_found"),
    (BodyTooLarge, 413, "invalid_request_error", "body_too_large"),
    (BadRequest, 400, "invalid_request_error", None),
    (Overloaded, 429, "rate_limit_error", "overloaded"),
    (ModelNotReady, 503, "service_unavailable_error", "model_not_ready"),
    (EngineDead, 503, "service_unavailable_error", "engine_dead"),
    (OctavoError, 500, "server_error", None),
]


def reply_for(error: Exception) -> ErrorReply:
    """The answer to an exception; one that nobody raised on purpose is logged and its text stays here."""
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            retry_after: float | None = getattr(error, "retry_after", None)
            headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
            param = error.param if isinstance(error, BadRequest) else None
            return ErrorReply(
                status, {"error": ErrorDetail(message=str(error), type=name, param=param, code=code)}, headers
            )
    logger.error("Unexpected error while serving a request", exc_info=error)
    message = "internal server error; the server's log says more"
    return ErrorReply(500, {"error": ErrorDetail(message=message, type="server_error", param=None, code=None)})


def refusal(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> ErrorReply:
    """An answer to a request that did not come as far as the API."""
    detail = ErrorDetail(message=message, type="invalid_request_error", param=None, code=code)
    return ErrorReply(status, {"error": detail}, headers or {})


def error_response(reply: ErrorReply) -> Response:
    """The same as an HTTP response."""
    return Response(msgspec.json.encode(reply.body), reply.status, reply.headers, media_type="application/json")
