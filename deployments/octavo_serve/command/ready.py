"""What `octavo serve` says of shards that have started: one line for all of a model that start together."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping

LINE = re.compile(r"(Engine|Shard) ready: (.*)")
"""What `octavo_serve.shard.start_up` writes into a shard's log."""

TOGETHER_SECONDS = 2.0
"""Shards that are ready within so long of each other are one line."""
PATIENCE_SECONDS = 30.0
"""The same while a model does not have all the shards yet that it starts with: Ray starts them by and by."""


class ReadyShards:
    """Reads shards' lines and says fewer: a model's engine once, its shards in groups.

    Args:
        expected: shards that each model starts with; they are one line as soon as all are there.
        say: called with each line, from the thread that reads or from a timer's.
    """

    def __init__(self, expected: Mapping[str, int], say: Callable[[str], None]) -> None:
        self._expected = dict(expected)
        self._say = say
        self._engines = set[str]()
        self._ready: dict[str, list[str]] = {}
        self._timers: dict[str, threading.Timer] = {}
        self._lock = threading.Lock()

    def read(self, line: str) -> None:
        """Take a line of the log; most are of no interest."""
        if (found := LINE.search(line)) is None:
            return
        model = found[2].partition(": ")[0]
        if found[1] == "Shard":
            self._shard(model, found[2])
        elif model not in self._engines:
            self._engines.add(model)
            self._say(found[0])

    def close(self) -> None:
        """Say no more."""
        with self._lock:
            for timer in self._timers.values():
                timer.cancel()
            self._ready.clear()

    def _shard(self, model: str, told: str) -> None:
        with self._lock:
            self._ready.setdefault(model, []).append(told)
            if (timer := self._timers.pop(model, None)) is not None:
                timer.cancel()
            missing = self._expected.get(model, 0) - len(self._ready[model])
        if missing == 0:
            self._tell(model)
        else:
            self._tell_later(model, PATIENCE_SECONDS if missing > 0 else TOGETHER_SECONDS)

    def _tell_later(self, model: str, seconds: float) -> None:
        with self._lock:
            timer = self._timers[model] = threading.Timer(seconds, self._tell, (model,))
            timer.daemon = True
            timer.start()

    def _tell(self, model: str) -> None:
        with self._lock:
            told = self._ready.pop(model, [])
            self._expected.pop(model, None)  # those that come later come because of the load
        if told:
            self._say(together(told))


def together(told: list[str]) -> str:
    """One line for a model's shards, of their own: "MODEL: 4.20 s after its process began (...)"."""
    if len(told) == 1:
        return f"Shard ready: {told[0]}"
    seconds = {_seconds(each): each for each in told}
    model, _, slowest = seconds[max(seconds)].rpartition(": ")
    return f"{len(told)} shards ready: {model}: in {min(seconds):.1f} to {max(seconds):.1f} s; the slowest {slowest}"


def _seconds(told: str) -> float:
    return float(told.rpartition(": ")[2].partition(" ")[0])
