"""Reads a batch's file: what is wrong with its lines, and the order in which they are to run.

Lines run sorted by the beginning of their prompts, window by window, so that those with a common prefix run together
and find it in the cache (BlendServe's idea, Zhao et al. 2024). A window bounds how much is held, and how long a line
waits behind those that came after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.batches.nouns import Line
from octavo_serve.api.bounds import MAX_NAME

MAX_LINES = 50_000
"""Lines of a batch, as OpenAI's."""
MAX_ERRORS = 100
"""Errors that are told of a file; nothing after them is read."""
WINDOW = 4096
PREFIX = 4096
"""Bytes of a prompt by which lines are sorted: about a thousand tokens."""


class LineError(TypedDict):
    """What is wrong with a line, as OpenAI tells it."""

    code: str
    line: int | None
    message: str
    param: str | None


@dataclass(slots=True)
class Read:
    """What is in a file: lines in the order in which they are to run, or errors."""

    lines: list[Line] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)
    model: str = ""


class _LineJson(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    background: bool | None = None
    deadline_ms: msgspec.Raw | None = None
    tools: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


class _Wrong(Exception):
    """Code, sentence, and field of an error."""


_decode_line = msgspec.json.Decoder(_LineJson).decode
_decode_body = msgspec.json.Decoder(_Body).decode


def body_of(path: Path, line: Line) -> bytes:
    """The body of a line that was checked."""
    with path.open("rb") as file:
        file.seek(line.start)
        return bytes(_decode_line(file.read(line.size)).body)


def endpoint_of(path: Path, max_bytes: int) -> str:
    """What the first line of a file is for; "" if that cannot be read."""
    with path.open("rb") as file:
        first = next(_lines(file, max_bytes), None)
    with contextlib.suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return "" if first is None else _decode_line(first[2]).url
    return ""


def read(path: Path, endpoint: str, max_bytes: int) -> Read:
    """Check a file's lines.

    Args:
        endpoint: that each is for.
        max_bytes: of a line.
    """
    found, seen = Read(), dict[str, int]()
    window: list[tuple[bytes, Line]] = []
    with path.open("rb") as file:
        for number, start, text in _lines(file, max_bytes):
            if len(found.errors) >= MAX_ERRORS:
                break
            try:
                if len(seen) >= MAX_LINES:
                    raise _Wrong("too_many_lines", f"the file has more than {MAX_LINES} lines: make several", None)
                line, body = _checked(text, endpoint, max_bytes)
                _check_others(line, body, seen, found)
            except _Wrong as wrong:
                code, message, param = wrong.args
                found.errors.append(error_of(code, message, param, number))
                if code == "too_many_lines":
                    break
                continue
            seen[line.custom_id] = number
            window.append((_prefix(body), Line(number, line.custom_id, start, len(text))))
            if len(window) == WINDOW:
                found.lines += _sorted(window)
                window = []
    found.lines += _sorted(window)
    if not seen and not found.errors:
        found.errors.append(error_of("empty_file", "the file has no line"))
    return found


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and bytes of each line that is not blank; of one that is too long a byte too many."""
    number = start = 0
    while text := file.readline(max_bytes + 1):
        number += 1
        size = len(text)
        if text.strip():
            yield number, start, text
        while not text.endswith(b"\n") and (text := file.readline(2**20)):
            size += len(text)
        start += size


def _checked(text: bytes, endpoint: str, max_bytes: int) -> tuple[_LineJson, _Body]:
    if len(text) > max_bytes:
        raise _Wrong("line_too_long", f"the line has more than {max_bytes} bytes", None)
    try:
        line = _decode_line(text)
        body = _decode_body(line.body)
    except msgspec.ValidationError as error:
        raise _Wrong("invalid_request", f"a line has custom_id, method, url and body: {error}", None) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _Wrong("invalid_json_line", f"the line is not valid JSON: {error}", None) from None
    if line.method != "POST":
        raise _Wrong("invalid_method", f"the method is {line.method!r:.80}: it must be POST", "method")
    if line.url != endpoint:
        raise _Wrong("invalid_url", f"the url is {line.url!r:.80}, and the batch is for {endpoint}", "url")
    if not 0 < len(line.custom_id) <= MAX_NAME:
        raise _Wrong("invalid_custom_id", f"custom_id must have 1 to {MAX_NAME} characters", "custom_id")
    for name in ("stream", "background"):
        if getattr(body, name):
            raise _Wrong("invalid_request", f"a batch's answers come in a file: leave {name} out", f"body.{name}")
    if body.deadline_ms not in (None, b"null"):
        sentence = "a line waits until nobody else needs the machine: leave deadline_ms out"
        raise _Wrong("invalid_request", sentence, "body.deadline_ms")
    return line, body


def _check_others(line: _LineJson, body: _Body, seen: dict[str, int], found: Read) -> None:
    if (other := seen.get(line.custom_id)) is not None:
        raise _Wrong("duplicate_custom_id", f"line {other} has the same custom_id", "custom_id")
    if not seen:
        found.model = body.model or ""
    elif found.model != (body.model or ""):
        raise _Wrong(
            "mismatched_model", f"the first line names the model {found.model!r:.80}: name one in all", "model"
        )


def error_of(code: str, message: str, param: str | None = None, line: int | None = None) -> LineError:
    """An error of a file, or of one of its lines."""
    return {"code": code, "line": line, "message": message, "param": param}


def _prefix(body: _Body) -> bytes:
    """What a prompt begins with, as templates have it."""
    return b"".join(bytes(part)[:PREFIX] for part in (body.tools, body.system, body.messages, body.prompt, body.input))


def _sorted(window: list[tuple[bytes, Line]]) -> list[Line]:
    return [line for _, line in sorted(window, key=lambda each: each[0])]
