"""A batch's file is read line by line, whatever is in it, and its lines run sorted by their prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo_serve.api.batches import reading
from octavo_serve.api.batches.reading import body_of, read

URL = "/v1/chat/completions"


def line(name: str, text: str, **body: Any) -> bytes:
    asked = {"messages": [{"role": "user", "content": text}], **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": URL, "body": asked}).encode()


def written(folder: Path, *lines: bytes) -> Path:
    path = folder / "lines"
    path.write_bytes(b"\n".join(lines))
    return path


def test_lines_with_a_common_beginning_run_together_within_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WINDOW", 4)
    texts = ["b 1", "a 1", "b 2", "a 2", "a 3", "b 3"]
    path = written(tmp_path, *(line(f"q{n}", text, seed=n) for n, text in enumerate(texts)))
    found = read(path, URL, 1000)
    assert [each.number for each in found.lines] == [2, 4, 1, 3, 5, 6]
    for each in found.lines:
        assert json.loads(body_of(path, each))["messages"][0]["content"] == texts[each.number - 1]


def test_a_long_line_is_one_error_and_what_follows_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path, line("a", "x"), line("b", "x" * 3 * 2**20), b"", line("c", "x"), b'{"custom_id": 1}', b"\xff"
    )
    found = read(path, URL, 1000)
    assert [(error["line"], error["code"]) for error in found.errors] == [
        (2, "line_too_long"),
        (5, "invalid_request"),
        (6, "invalid_json_line"),
    ]
    assert [(each.number, each.custom_id) for each in found.lines] == [(1, "a"), (4, "c")]


HOSTILE = [b"[" * 900, b'{"body": ' * 90, b"null", b"{}", b'{"custom_id": "\xff"}', b"\0", b"PK\x03\x04"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_line_is_more_than_an_error(tmp_path: Path, text: bytes) -> None:
    found = read(written(tmp_path, text), URL, 1000)
    assert (len(found.errors), found.lines) == (1, [])


def test_reading_ends_at_a_hundred_errors_or_at_the_most_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read(written(tmp_path, *[b"{}"] * 5000), URL, 1000).errors) == 100
    monkeypatch.setattr(reading, "MAX_LINES", 3)
    found = read(written(tmp_path, *(line(str(n), "x") for n in range(9))), URL, 1000)
    assert [(error["line"], error["code"]) for error in found.errors] == [(4, "too_many_lines")]
