"""Files that batches read, and those that they write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.batches import store
from octavo_serve.api.batches.batches import UPLOAD_SECONDS, Batches, Partial
from octavo_serve.api.batches.nouns import StoredFile, new_id
from octavo_serve.api.failures import NotKept
from octavo_serve.api.operation import Call, Content, Operation, Streamed
from octavo_serve.api.service import Service
from octavo_serve.surfaces.batches.form import Form
from octavo_serve.surfaces.batches.schemas import (
    LEAST_TTL,
    MOST_TTL,
    FileDeleted,
    FileList,
    FileObject,
    FileQuery,
    UploadForm,
    told_file,
)
from octavo_serve.surfaces.openai.errors import ERRORS

PATH = "/v1/files/{file_id}"
SLICE = 2**20
"""Bytes of an upload that are read and written at once, in a thread."""
JSON_LINES = "application/jsonl"
FIELDS = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}


async def _upload(service: Service, call: Call) -> FileObject:
    batches, owner = service.batches, call.caller.name
    settings = batches.on
    assert call.content is not None, "files are not for handles"
    with batches.uploading(owner):
        await batches.run(store.check_room, owner, 0, settings)
        with batches.partial(file_id := new_id("file")) as part:
            try:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    form = await _received(batches, call.content, part)
            except TimeoutError:
                raise BadRequest(f"the upload took longer than {UPLOAD_SECONDS:.0f} s: send less at once") from None
            now, ttl = int(batches.clock()), _ttl(form.fields)
            file = StoredFile(
                id=file_id,
                owner=owner,
                name=form.filename or "",
                purpose="batch",
                size=part.size,
                created=now,
                expires=now + ttl,
            )
            await batches.run(store.check_room, owner, part.size, settings)
            await batches.threads.finish(part.keep)
            await batches.run(store.add_file, file, settings)
    return told_file(file)


async def _received(batches: Batches, content: Content, part: Partial) -> Form:
    form = Form(content.media_type, partial(part.write, most=batches.on.file_bytes))
    slice_ = bytearray()
    async for chunk in content.chunks:
        slice_ += chunk
        if len(slice_) >= SLICE:
            await batches.threads.finish(form.feed, bytes(slice_))
            slice_.clear()
    await batches.threads.finish(form.feed, bytes(slice_))
    form.close()
    return form


def _ttl(fields: dict[str, str]) -> int:
    """Seconds that a file is kept, of a form's fields.

    Raises:
        BadRequest: naming the one that is wrong.
    """
    if unknown := fields.keys() - FIELDS:
        raise BadRequest(f"the form has a field {min(unknown)!r:.80} that is not known", min(unknown))
    if fields.get("purpose") != "batch":
        raise BadRequest("purpose must be batch: files are for batches here", "purpose")
    seconds, anchor = fields.get("expires_after[seconds]"), fields.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return MOST_TTL
    if anchor != "created_at" or not (seconds or "").isdecimal() or not LEAST_TTL <= int(seconds or 0) <= MOST_TTL:
        raise BadRequest(
            f"expires_after has the anchor created_at and {LEAST_TTL} to {MOST_TTL} seconds", "expires_after"
        )
    return int(seconds or 0)


async def _found(service: Service, call: Call) -> StoredFile:
    batches, file_id = service.batches, call.path["file_id"]
    file = await batches.run(store.get_file, call.caller.name, file_id, batches.clock())
    if file is None:
        raise NotKept(f"there is no file {file_id!r:.80}", "file_id")
    return file


async def _get(service: Service, call: Call) -> FileObject:
    return told_file(await _found(service, call))


async def _content(service: Service, call: Call) -> Streamed:
    file = await _found(service, call)
    return Streamed(JSON_LINES, service.batches.read(file))


async def _delete(service: Service, call: Call) -> FileDeleted:
    batches, file = service.batches, await _found(service, call)
    if not await batches.run(store.delete_file, file.owner, file.id):
        raise NotKept(f"there is no file {file.id!r}", "file_id")
    await batches.threads.finish(partial(batches.on.path(file.id).unlink, missing_ok=True))
    return {"id": file.id, "object": "file", "deleted": True}


async def _list(service: Service, call: Call) -> FileList:
    query: FileQuery = call.query
    newest, most = query.order == "desc", query.limit + 1
    found = await service.batches.run(store.list_files, call.caller.name, query.purpose, query.after, most, newest)
    if found is None:
        raise BadRequest(f"after names {query.after!r:.80}, which is no file", "after")
    listed: FileList = page([told_file(file) for file in found], query.limit)
    return listed


def page(found: Sequence[Any], limit: int) -> Any:
    """A list's page: up to `limit` of what was found, which is one more where there are more."""
    data = list(found[:limit])
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": len(found) > limit}


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/files",
        summary="Upload a file for a batch",
        answers=FileObject,
        run=_upload,
        errors=ERRORS,
        form=UploadForm,
    ),
    Operation(
        method="GET",
        path="/v1/files",
        summary="Your files",
        answers=FileList,
        run=_list,
        errors=ERRORS,
        query=FileQuery,
    ),
    Operation(method="GET", path=PATH, summary="A file", answers=FileObject, run=_get, errors=ERRORS),
    Operation(method="DELETE", path=PATH, summary="Delete a file", answers=FileDeleted, run=_delete, errors=ERRORS),
    Operation(
        method="GET",
        path=f"{PATH}/content",
        summary="A file's bytes",
        answers=None,
        run=_content,
        errors=ERRORS,
        media_type=JSON_LINES,
    ),
)
