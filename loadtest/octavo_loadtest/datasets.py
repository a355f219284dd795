"""Workloads from files: ShareGPT JSON, Mooncake JSONL, Azure CSV and plain JSONL. The first line tells which it is."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.text import Segment
from octavo_loadtest.workloads import Ask, Shape, Talk, fit

MOONCAKE_BLOCK = 512
MOONCAKE_QUANTUM = 3.0  # s: its time stamps come in batches of this width
TEXT = "utf-8-sig"  # with or without the mark that spreadsheets put at the beginning
CHARACTERS_PER_TOKEN = 4.0  # a guess for given text, replaced by the server's count in the record


def read(path: Path, shape: Shape) -> Iterator[Talk]:
    """The sessions of a file, in its order.

    Raises:
        LoadTestError: it cannot be read, or is none of the four kinds.
    """
    try:
        with path.open(encoding=TEXT) as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{path} cannot be read: {error}") from None
    reader = _reader(first, path)
    try:
        for talk in reader(path, shape):
            yield fit(talk, shape.max_tokens)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise LoadTestError(f"{path} has a line that does not fit: {error!r}") from None


def _reader(first: str, path: Path) -> Any:
    if first.lstrip().startswith("["):
        return _sharegpt
    if first.lstrip().startswith("{"):
        return _mooncake if '"hash_ids":' in first else _plain  # a prompt with that word has its quotes escaped
    if "ContextTokens" in first:
        return _azure
    raise LoadTestError(f"{path} is no ShareGPT JSON, Mooncake JSONL, Azure CSV or JSONL with prompts")


def _azure(path: Path, shape: Shape) -> Iterator[Talk]:
    with path.open(newline="", encoding=TEXT) as file:
        start: datetime | None = None
        for i, row in enumerate(csv.DictReader(file)):
            time = datetime.fromisoformat(row["TIMESTAMP"]).replace(tzinfo=None)
            start = start or time
            prompt = Segment(f"s{i}", shape.length(int(row["ContextTokens"])))
            ask = Ask((prompt,), shape.length(int(row["GeneratedTokens"])))
            yield Talk(f"s{i}", (ask,), (time - start).total_seconds())


def _mooncake(path: Path, shape: Shape) -> Iterator[Talk]:
    """Blocks of 512 tokens by their hash; the last one holds what is left. Each batch is spread evenly over its 3 s, or
    over the time to the next."""
    rows = list(_lines(path))
    batches: dict[float, int] = {}
    for row in rows:
        batches[row["timestamp"]] = batches.get(row["timestamp"], 0) + 1
    stamps = sorted(batches)
    widths = {stamp: min(MOONCAKE_QUANTUM, (after - stamp) / 1000) for stamp, after in pairwise(stamps)}
    placed: dict[float, int] = {}
    block = shape.length(MOONCAKE_BLOCK)
    for i, row in enumerate(rows):
        stamp = row["timestamp"]
        rank = placed[stamp] = placed.get(stamp, -1) + 1
        left, segments = shape.length(row["input_length"]), []
        for name in row["hash_ids"]:
            if left > 0:
                segments.append(Segment(f"block{name}", min(block, left)))
            left -= block
        if left > 0:  # the trace names no block for it
            segments.append(Segment(f"s{i}", left))
        at = stamp / 1000 + widths.get(stamp, MOONCAKE_QUANTUM) * rank / batches[stamp]
        yield Talk(f"s{i}", (Ask(tuple(segments), shape.length(row["output_length"])),), at)


def _sharegpt(path: Path, shape: Shape) -> Iterator[Talk]:
    """A question with the length of its answer; questions are sent unchanged."""
    for i, row in enumerate(json.loads(path.read_text(encoding=TEXT))):
        turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
        asks: list[Ask] = []
        for (who, question), (other, answer) in pairwise(turns):
            if who in ("human", "user") and other in ("gpt", "assistant", "chatgpt") and question.strip():
                asks.append(Ask((_given(f"s{i}.{len(asks)}", question),), shape.length(_guess(answer))))
        if asks:
            yield Talk(f"s{i}", tuple(asks))


def _plain(path: Path, shape: Shape) -> Iterator[Talk]:
    """Lines with `prompt` (text) or `input_length`, `max_tokens` or `output_length`, and optionally `at` (s)."""
    for i, row in enumerate(_lines(path)):
        output = shape.length(row.get("max_tokens") or row.get("output_length") or 128)
        if "prompt" in row:
            segment = _given(f"s{i}", row["prompt"])
        else:
            segment = Segment(f"s{i}", shape.length(row["input_length"]))
        yield Talk(f"s{i}", (Ask((segment,), output),), _time(row.get("at")))


def _time(given: Any) -> float | None:
    if given is None:
        return None
    if not math.isfinite(given):
        raise ValueError(f"{given} is no time")
    return float(given)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding=TEXT) as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _given(key: str, text: str) -> Segment:
    if not isinstance(text, str):
        raise TypeError(f"{text!r:.80} is no text")
    return Segment(key, _guess(text), text)


def _guess(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))
