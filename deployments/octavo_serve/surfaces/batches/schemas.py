"""Bodies and answers of files and batches, as OpenAI has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.batches.nouns import Batch, Purpose, Status, StoredFile
from octavo_serve.api.batches.reading import LineError
from octavo_serve.api.body import Body
from octavo_serve.api.fields import Integer, Metadata, Name
from octavo_serve.api.operation import Query

LEAST_TTL, MOST_TTL = 3600, 30 * 86_400
"""Seconds that a file may be kept, as OpenAI has them."""
WINDOW_SECONDS = 86_400
"""Of the only completion window, 24h."""

Ttl = Annotated[Integer, Field(ge=LEAST_TTL, le=MOST_TTL)]


class ExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: Ttl


class BatchBody(Body):
    """Of POST /v1/batches."""

    input_file_id: Name
    endpoint: Name
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class UploadForm(BaseModel):
    """Fields of the form that POST /v1/files takes."""

    file: Annotated[bytes, Field(json_schema_extra={"format": "binary"})]
    purpose: Literal["batch"]
    expires_after_anchor: Literal["created_at"] | None = Field(default=None, alias="expires_after[anchor]")
    expires_after_seconds: Ttl | None = Field(default=None, alias="expires_after[seconds]")


class FileQuery(Query):
    """Parameters of GET /v1/files."""

    purpose: Name | None = None
    limit: int = Field(default=10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    after: Name | None = None


class BatchQuery(Query):
    """Parameters of GET /v1/batches."""

    limit: int = Field(default=20, ge=1, le=100)
    after: Name | None = None


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"]
    status_details: None


class FileList(TypedDict):
    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class CachedTokens(TypedDict):
    cached_tokens: int


class ReasoningTokens(TypedDict):
    reasoning_tokens: int


class BatchUsage(TypedDict):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class LineErrors(TypedDict):
    object: Literal["list"]
    data: list[LineError]


class BatchObject(TypedDict):
    id: str
    object: Literal["batch"]
    endpoint: str
    errors: LineErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    model: str | None
    metadata: dict[str, str] | None


class BatchList(TypedDict):
    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def told_file(file: StoredFile) -> FileObject:
    """A file as its caller sees it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created,
        "expires_at": file.expires,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def told_batch(batch: Batch, *, tells: bool) -> BatchObject:
    """A batch as its caller sees it.

    Args:
        tells: whether it may tell about the cache, which holds what others have sent.
    """
    facts: dict[str, Any] = batch.facts
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": facts.get("errors"),
        "input_file_id": batch.input,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output,
        "error_file_id": batch.error,
        "created_at": batch.created,
        "in_progress_at": facts.get("in_progress_at"),
        "expires_at": batch.expires,
        "finalizing_at": facts.get("finalizing_at"),
        "completed_at": facts.get("completed_at"),
        "failed_at": facts.get("failed_at"),
        "expired_at": facts.get("expired_at"),
        "cancelling_at": facts.get("cancelling_at"),
        "cancelled_at": facts.get("cancelled_at"),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": _told_usage(facts.get("usage") or {}, tells=tells),
        "model": batch.model or None,
        "metadata": facts.get("metadata"),
    }


def _told_usage(tokens: dict[str, int], *, tells: bool) -> BatchUsage:
    """Tokens of the lines that have an answer, as `Usage` names them."""
    prompt, completion = tokens.get("prompt_tokens", 0), tokens.get("completion_tokens", 0)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": tokens.get("cached_tokens", 0) if tells else 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": tokens.get("reasoning_tokens", 0)},
        "total_tokens": prompt + completion,
    }
