"""One load: every option of the command line and of a config file, with its default."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from octavo_loadtest.errors import LoadTestError


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and when."""

    workload: str = "balanced"  # a preset or a file
    arrivals: str = ""  # NAME:key=value,...; "": the workload's own
    rate: float = 1.0  # sessions a second; most sessions have one request
    concurrency: int = 0  # closed loop: sessions at once. Open: in flight at most (the wait is charged), 0: no limit
    requests: int = 0  # at most; 0: as many as `duration` holds, or 100
    duration: float = 0.0  # s of arrivals; 0: no limit
    scale: float = 1.0  # of all lengths
    max_tokens: int = 0  # longest prompt with history and answer; 0: no limit
    think: float = 1.0  # factor of think times
    time_scale: float = 1.0  # of a replayed trace: 2 is half as fast
    seed: int = 1
    warmup: int = 4  # requests before the run, not counted
    processes: int = 1  # that send
    drain: float = 60.0  # s after the last arrival

    def __post_init__(self) -> None:
        for name in ("rate", "scale", "time_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise LoadTestError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        for name in ("concurrency", "requests", "duration", "max_tokens", "think", "warmup", "drain", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise LoadTestError(f"{name} must be a number from 0 on, not {getattr(self, name)}")
        if self.max_tokens == 1:
            raise LoadTestError("max_tokens must leave room for a prompt and an answer: 2 or more, or 0 for no limit")
        if self.processes < 1:
            raise LoadTestError("at least one process must send")

    @property
    def limit(self) -> int:
        """Requests at most."""
        return self.requests or (1_000_000 if self.duration else 100)


def from_dict(values: dict[str, Any]) -> Load:
    """A load of a config file.

    Raises:
        LoadTestError: a key that no load has, or a value of the wrong kind.
    """
    known = {field.name: type(getattr(Load(), field.name)) for field in fields(Load)}
    if unknown := set(values) - set(known):
        raise LoadTestError(f"a load has no {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    try:
        return Load(**{key: known[key](value) for key, value in values.items()})
    except (ValueError, TypeError, OverflowError) as error:
        raise LoadTestError(f"load {values}: {error}") from None


def to_dict(load: Load) -> dict[str, Any]:
    return asdict(load)
