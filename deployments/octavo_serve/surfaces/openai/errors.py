"""OpenAI's error body."""

from __future__ import annotations

from octavo_serve.api.failures import Failure
from octavo_serve.api.surface import Errors
from octavo_serve.surfaces.openai.schemas import ErrorBody, ErrorDetail

_TYPES = {429: "rate_limit_error", 503: "service_unavailable_error"}


def error_body(failure: Failure) -> ErrorBody:
    """A failure in OpenAI's error format."""
    kind = _TYPES.get(failure.status, "server_error" if failure.status >= 500 else "invalid_request_error")
    return {"error": ErrorDetail(message=failure.message, type=kind, param=failure.param, code=failure.code)}


ERRORS = Errors(ErrorBody, error_body)
