"""The Messages API's error body."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from octavo_serve.api.failures import QUOTA, Failure
from octavo_serve.api.quotas import Standing
from octavo_serve.api.surface import Errors
from octavo_serve.surfaces.messages.answers import ErrorBody

OVERLOADED = 529
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "overloaded_error",
}
_NAMES = {
    "stop": "stop_sequences",
    "continue_final_message": "a last message of the assistant",
    r"(tools\.\d+)\.function\.parameters": r"\1.input_schema",
}
"""Fields as chats have them."""


def error_body(failure: Failure) -> ErrorBody:
    """A failure in the Messages API's error format. Clients compact a conversation where "prompt is too long"."""
    kind = _KINDS.get(failure.status, "api_error" if failure.status >= 500 else "invalid_request_error")
    kind = "rate_limit_error" if failure.code == QUOTA else kind
    too_long = failure.code == "context_length_exceeded"
    message = failure.renamed(_NAMES).message
    message = f"prompt is too long: {message}" if too_long else message
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}


def limits(standings: Sequence[Standing]) -> dict[str, str]:
    """The headers of quotas; times are UTC."""
    found, now = {}, datetime.now(UTC)
    for one in standings:
        found[f"anthropic-ratelimit-{one.kind}-limit"] = str(one.limit)
        found[f"anthropic-ratelimit-{one.kind}-remaining"] = str(one.remaining)
        reset = now + timedelta(seconds=math.ceil(one.reset))
        found[f"anthropic-ratelimit-{one.kind}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
    return found


ERRORS = Errors(ErrorBody, error_body, {429: OVERLOADED}, limits)
