from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo_loadtest import record
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.record import Chunk, Record


def one(**given: Any) -> Record:
    chunks = [
        Chunk(1, "empty", 0, None),
        Chunk(5, "text", 2, 1),
        Chunk(9, "reasoning", 3, None),
        Chunk(9, "usage", 0, 2),
    ]
    return Record(3, "s", 1, 0, 9, 5, 4, 100, 130, status=200, chunks=chunks, **given)


def test_tokens_are_the_servers_then_the_tokenizers_then_chunks() -> None:
    assert (one().output_tokens, one().counted_by) == (2, "chunks")
    assert (one(tokenized=7).output_tokens, one(tokenized=7).counted_by) == (7, "tokenizer")
    counted = one(tokenized=7, usage={"completion_tokens": 9})
    assert (counted.output_tokens, counted.counted_by) == (9, "server")


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": None}, {"prompt_tokens_details": None}])
def test_usage_that_says_nothing(usage: dict[str, Any] | None) -> None:
    found = one(usage=usage)
    assert (found.prompt_tokens, found.cached_tokens, found.output_tokens) == (None, None, 2)


def test_cached_tokens_of_the_prompt() -> None:
    found = one(usage={"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}})
    assert (found.prompt_tokens, found.cached_tokens) == (9, 4)


def test_a_failure_is_not_ok() -> None:
    assert one().ok
    assert not one(error="empty: ...").ok


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    unsent = Record(4, "t", 0, -1, 9, 5, 0, 100, None, error="unsent: ...")
    records = [one(usage={"prompt_tokens": 1}, headers={"x-a": "é"}, done=True, tokenized=2), unsent]
    record.save(tmp_path / "records.jsonl", records)
    assert list(record.load(tmp_path / "records.jsonl")) == records


def test_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"a": 1}\n')
    with pytest.raises((LoadTestError, TypeError, KeyError)):
        list(record.load(tmp_path / "records.jsonl"))
