"""What `octavo serve` says as JSON, a line each, with the names that Serve's own JSON lines have."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from typing import TextIO, cast

from rich.console import Console

WIDTH = 100_000
"""Columns: a sentence is one line, however long."""


def console(as_json: bool) -> Console:
    """Where the command says things."""
    if not as_json:
        return Console(highlight=False)
    out = cast(TextIO, JsonLines(sys.stdout))
    return Console(file=out, highlight=False, color_system=None, width=WIDTH)


class JsonLines(io.TextIOBase):
    """Makes a JSON object of each line that is written, but for those that are one; may be written to by any thread."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in filter(None, map(str.strip, lines)):
                self._out.write((line if _is_object(line) else _object(line)) + "\n")
            self._out.flush()
        return len(text)


def _is_object(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _object(line: str) -> str:
    now = time.time()
    return json.dumps(
        {
            "asctime": f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))},{int(now % 1 * 1000):03d}",
            "levelname": "ERROR" if line.startswith("Not serving") else "INFO",
            "message": line,
            "process": os.getpid(),
            "component_name": "octavo serve",
            "timestamp_ns": int(now * 1e9),
        }
    )
