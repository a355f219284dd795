"""JSON responses for values and failures, and headers that say which shard made an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import Response, StreamingResponse

from octavo_serve.api.failures import Failure
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Streamed
from octavo_serve.api.pieces import Begun
from octavo_serve.api.surface import Errors, to_json

JSON = "application/json"

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
SHARD, REASON, CACHED = "x-octavo-shard", "x-octavo-route-reason", "x-octavo-cached-tokens"


def json_reply(value: Mapping[str, Any], status: int = 200) -> Response:
    """A response that holds `value`."""
    return Response(to_json(value), status, media_type=JSON)


def answer_reply(answer: Mapping[str, Any] | Streamed | Listing) -> Response:
    """A response that holds an operation's answer."""
    if isinstance(answer, Listing):
        if not answer.is_large:
            return Response(to_json(answer.whole()), media_type=JSON)
        return StreamingResponse(answer.chunks(), media_type=JSON)
    if not isinstance(answer, Streamed):
        return json_reply(answer)
    return StreamingResponse(answer.chunks, headers=STREAM_HEADERS, media_type=answer.media_type)


def failure_reply(failure: Failure, errors: Errors) -> Response:
    """A failure in a protocol's error format."""
    status = errors.status(failure.status, failure.code)
    return Response(to_json(errors.body(failure)), status, failure.headers, media_type=JSON)


def routing_headers(begun: Iterable[Begun]) -> dict[str, str]:
    """Headers that say where a request's prompts were sent, why, and how many of their tokens were cached there."""
    placed = [(one.placement, one.cached_tokens) for one in begun if one.placement is not None]
    if not placed:
        return {}
    predicted, actual = sum(placement.cached_tokens for placement, _ in placed), sum(cached for _, cached in placed)
    return {
        SHARD: ", ".join(dict.fromkeys(placement.shard for placement, _ in placed)),
        REASON: ", ".join(dict.fromkeys(placement.reason for placement, _ in placed)),
        CACHED: f"predicted={predicted}, actual={actual}",
    }
