"""A file's lines answered by a server that has batches. Which batch it is stands in a file beside the output, so that
whoever begins again waits for the same one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import BadRequest, OctavoError
from octavo_serve.api.batches.reading import endpoint_of
from octavo_serve.command.batch.command import Progress, errors_of
from octavo_serve.command.remote import Remote

POLL_SECONDS = 1.0
LONGEST_LINE = 2**28
ENDED = "completed", "expired", "cancelled"


def through(url: str, key: str | None, file: Path, output: Path, progress: Progress) -> None:
    """Have a server answer a file's lines, and fetch what comes of them.

    Raises:
        OctavoError: it does not, or not all of it.
    """
    remote = Remote(url, key)
    try:
        note = output.with_name(f"{output.name}.batch")
        batch = _begun(remote, file, note)
        while batch["status"] not in (*ENDED, "failed"):
            time.sleep(POLL_SECONDS)
            batch = remote.json(f"/v1/batches/{batch['id']}")
            counts = batch["request_counts"]
            progress(counts["completed"], counts["failed"], counts["total"])
        _fetch(remote, batch, output)
        note.unlink()
        if batch["status"] != "completed":
            raise OctavoError(f"the batch {batch['id']} is {batch['status']}: {_why(batch)}")
    finally:
        remote.close()


def _begun(remote: Remote, file: Path, note: Path) -> Any:
    if note.exists():
        return remote.json(f"/v1/batches/{note.read_text().strip()}")
    if not (endpoint := endpoint_of(file, LONGEST_LINE)):
        raise BadRequest("the first line has no url: a line has custom_id, method, url and body")
    uploaded = remote.upload("/v1/files", file, {"purpose": "batch"})
    body = {"input_file_id": uploaded["id"], "endpoint": endpoint, "completion_window": "24h"}
    batch = remote.post("/v1/batches", body)
    note.write_text(batch["id"])
    return batch


def _fetch(remote: Remote, batch: Mapping[str, Any], output: Path) -> None:
    for file_id, path in ((batch["output_file_id"], output), (batch["error_file_id"], errors_of(output))):
        if file_id:
            remote.download(f"/v1/files/{file_id}/content", path)


def _why(batch: Mapping[str, Any]) -> str:
    errors = (batch.get("errors") or {}).get("data") or []
    said = [f"line {error.get('line')}: {error.get('message')}" for error in errors[:10]]
    return "\n".join(said) or json.dumps(batch["request_counts"])
