"""Plain records that are sent to the sender processes by pickle. Imports nothing heavy, so that they start fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octavo_loadtest.client import Answer
from octavo_loadtest.errors import LoadTestError

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}
"""What can be asked, by name. An embedding is one text; its answer is whole, and has no tokens."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session."""

    index: int  # of the request in the plan
    text: str  # what the user says in this turn
    output_tokens: int
    think: float = 0.0  # s between the end of the turn before and this one
    prompt_tokens: int = 0  # planned, with the history
    cached_tokens: int = 0  # planned: shared with earlier requests


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation. Its first turn starts at `at`; each later one follows the answer to the one before."""

    name: str
    at: float  # s since the start of the run; of no meaning in a closed loop
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """How to ask the server."""

    url: str
    model: str
    api: str = "chat"  # of PATHS
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)  # goes into every request
    reuse_connections: bool = True
    timeout: float = 600.0  # s for one request, from when it is sent

    def __post_init__(self) -> None:
        if self.api not in PATHS:
            raise LoadTestError(f"api is one of {', '.join(PATHS)}, not {self.api!r}")
        if not isinstance(self.body, dict):
            raise LoadTestError(f"body must be an object, for it goes into every request, and not {self.body!r}")
        if not self.timeout > 0:
            raise LoadTestError(f"timeout must be above 0 s, not {self.timeout:g}")

    @property
    def path(self) -> str:
        return PATHS[self.api]


@dataclass(frozen=True, slots=True)
class Orders:
    """One process's share of a run."""

    process: int
    target: Target
    sessions: tuple[Session, ...]
    closed: bool = False
    concurrency: int = (
        0  # closed: sessions at once. Open: requests in flight at most (the wait is charged), 0: no limit
    )
    batch: int = 0  # closed: start this many together and wait for all of them
    duration: float = float("inf")  # s: no session of a closed loop starts later
    drain: float = 60.0  # s after the last arrival (or `duration`) before what still runs is given up


@dataclass(slots=True)
class Outcome:
    """The outcome of one request. Times are in ns since the start of the run."""

    process: int
    session: str
    index: int
    scheduled: int
    sent: int
    connected: int | None = None
    answer: Answer = field(default_factory=Answer)  # its times are of the clock, not of the run
    error: str | None = None


@dataclass(slots=True)
class Pulse:
    """A sender's report about itself, every quarter of a second and (final) at its end."""

    process: int
    sent: int
    finished: int
    cpu_seconds: float
    wall_seconds: float
    lags: list[float]  # s: how late the event loop woke up, every 20 ms, since the last pulse
    ended: int | None = None  # ns of the clock: when the process stopped sending; None: it goes on
