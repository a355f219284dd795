"""What one gateway counts of its requests. `exposition` shows it, under the names that monitoring knows.

Everything happens in the gateway's event loop: plain numbers, no locks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from octavo.engine.stats import EngineStats
from octavo.request import BELOW_ALL, Placement
from octavo.routing.router import Router
from octavo_serve.api.batches.nouns import Counts
from octavo_serve.api.histogram import Histogram
from octavo_serve.api.lateness import Lateness
from octavo_serve.api.registry import Status
from octavo_serve.api.usage import Ledger
from octavo_serve.wire.scaling import Scaling

ShardStats = Mapping[str, Sequence[tuple[str, EngineStats]]]
"""Model name -> (shard name, its statistics) for each shard that answered."""

Operation = Literal["chat", "text_completion", "embeddings", "rerank", "classify"]
"""What OpenTelemetry calls what a request asks for; it has no names for the last two."""

Cause = Literal["queue", "starting", "deadline"]
"""Why a model's request was refused: it would wait too long, or beside too many tokens; no shard is there yet."""

FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
"""vLLM's; OpenTelemetry's are the first sixteen."""
EACH_TOKEN = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
"""vLLM's, and three below them: small models are quicker. OpenTelemetry's are among them."""
OTEL_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
DURATION = tuple(sorted({*OTEL_DURATION,
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
}))  # fmt: skip
"""vLLM's, which begin at 0.3 s, and OpenTelemetry's: a small model's requests are over by then."""
TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
"""Of a request's prompts or answers; vLLM's, up to half a million."""
CACHED_ERROR = (-8192.0, -1024.0, -128.0, -16.0, -0.01, 0.0, 16.0, 128.0, 1024.0, 8192.0)
"""Tokens. 0 has a bucket to itself, or a quantile of predictions that are all right would lie between -1 and 0."""
FIRST_TOKEN_ERROR = (-10.0, -3.0, -1.0, -0.3, -0.1, -0.03, -0.01, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(slots=True, eq=False)
class Tally:
    """What has happened to one model's requests of one kind.

    Attributes:
        finished: sequences by finish reason; "abort" counts requests whose client left.
        first_token, each_token: seconds; the second between two tokens of a sequence.
        mean_token: seconds from the first to the last token over the tokens after the first, per request.
        duration: seconds from a request that was read to its last token.
        queued: seconds from a request that was read until its prompt was begun to be computed.
        prefilling: seconds from there to its first token.
        decoding: seconds from the first token to the last.
        prompt, generated: tokens per request.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN))
    each_token: Histogram = field(default_factory=lambda: Histogram(EACH_TOKEN))
    mean_token: Histogram = field(default_factory=lambda: Histogram(EACH_TOKEN))
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION))
    queued: Histogram = field(default_factory=lambda: Histogram(DURATION))
    prefilling: Histogram = field(default_factory=lambda: Histogram(DURATION))
    decoding: Histogram = field(default_factory=lambda: Histogram(DURATION))
    prompt: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    generated: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    cached_error: Histogram = field(default_factory=lambda: Histogram(CACHED_ERROR))
    first_token_error: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_ERROR))

    def add(self, other: Tally) -> None:
        """Count what another one has counted."""
        self.prompt_tokens += other.prompt_tokens
        self.generation_tokens += other.generation_tokens
        self.finished.update(other.finished)
        for name in _HISTOGRAMS:
            getattr(self, name).add(getattr(other, name))


_HISTOGRAMS = [each.name for each in fields(Tally) if each.type == "Histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What a gateway knows of a model now.

    Attributes:
        shards: that answer.
        least, most: shards that the model is to have.
        running: requests that run at a shard, or look for one.
        waiting: those of them that no shard has taken yet.
        queue_seconds: until a request that comes now begins, as predicted.
        queue_limit: seconds; who would wait longer is refused.
        refused: requests, since the start.
    """

    status: Status
    shards: int
    least: int
    most: int
    running: int
    waiting: int
    queue_seconds: float
    queue_limit: float
    refused: Mapping[Cause, int]


@dataclass(frozen=True, slots=True)
class Watched:
    """A model that is served: what its router knows, and a function that tells its state."""

    router: Router
    state: Callable[[], ModelState]


class Telemetry:
    """The counts of one gateway.

    Attributes:
        gateway: its name, where there are others; Prometheus then tells their counts apart.
        tallies: by model and kind of request.
        errors: requests that ended in an error, by status and code.
        by_key: requests by API key.
        moves: requests that went on at another shard, by model and reason.
        spans: of traced requests, by what became of them.
        misses: prompts of which not all was cached that could be, by model and reason (`api.misses`).
        models: that are served now.
        scaling: what the autoscaler said last, by model, of those that scale; as fresh as who looks at it asks for.
        lateness: of the gateway's event loop.
        batches: what its work on batches has come to.
        ledger: quotas and usage of tenants.
    """

    def __init__(self) -> None:
        self.gateway = ""
        self.tallies: dict[tuple[str, Operation], Tally] = {}
        self._unseen = Tally()  # of those below all others; nobody reads it
        self.errors: Counter[tuple[int, str]] = Counter()
        self.by_key: Counter[str] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        self.spans: Counter[str] = Counter()
        self.misses: Counter[tuple[str, str]] = Counter()
        self.models: Mapping[str, Watched] = {}
        self.scaling: Mapping[str, Scaling] = {}
        self.lateness = Lateness()
        self.batches = Counts()
        self.ledger = Ledger()

    def failed(self, status: int, code: str | None) -> None:
        """A request ended in an error."""
        self.errors[status, code or ""] += 1

    def moves_of(self, model: str) -> Callable[[str], None]:
        """A function that counts one move of a request of this model to another shard, by reason."""

        def moved(reason: str) -> None:
            self.moves[model, reason] += 1

        return moved

    def count_spans(self, outcome: str, number: int) -> None:
        """Count spans that were exported or failed to be, in the exporter's thread, or were dropped, in ours."""
        self.spans[outcome] += number

    def request(
        self, model: str, prompt_tokens: int, operation: Operation = "text_completion", *, priority: int = 0
    ) -> RequestTimer:
        """Start timing one request. Who is below all others waits for hours, and that is in nobody's times."""
        if priority >= BELOW_ALL:
            return RequestTimer(self._unseen)
        tally = self.tallies.get((model, operation))
        if tally is None:
            tally = self.tallies[model, operation] = Tally()
        tally.prompt_tokens += prompt_tokens
        tally.prompt.observe(prompt_tokens)
        return RequestTimer(tally)


class RequestTimer:
    """The times of one request, on this process's monotonic clock."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._start = time.monotonic()
        self._first = 0.0
        self._last: dict[int, float] = {}
        self._tokens = 0

    def tokens(self, choice: int, count: int) -> None:
        """`count` tokens of a sequence arrived now."""
        if not count:
            return
        now = time.monotonic()
        if not self._last:
            self._first = now
            self._tally.first_token.observe(now - self._start)
        last = self._last.get(choice)
        if last is not None:  # tokens that arrive together share the time since the last arrival
            self._tally.each_token.observe((now - last) / count, count)
        self._last[choice] = now
        self._tokens += count
        self._tally.generation_tokens += count

    def began(self, prefill: float) -> None:
        """The first news of a prompt arrived, which its shard had begun to compute so many seconds before."""
        waited = time.monotonic() - self._start - prefill
        self._tally.queued.observe(max(0.0, waited))
        self._tally.prefilling.observe(prefill)

    def placed(self, placement: Placement, cached_tokens: int) -> None:
        """The first token of a routed request arrived: compare it with the router's predictions."""
        self._tally.cached_error.observe(placement.cached_tokens - cached_tokens)
        self._tally.first_token_error.observe(placement.first_token - (time.monotonic() - self._start))

    def finished(self, reason: str) -> None:
        """One sequence of the request ended."""
        self._tally.finished[reason] += 1

    def done(self) -> None:
        """The whole request ended without an error."""
        now, tally = time.monotonic(), self._tally
        tally.duration.observe(now - self._start)
        tally.generated.observe(self._tokens)
        if self._last:
            tally.decoding.observe(now - self._first)
            if (after := self._tokens / len(self._last) - 1) > 0:
                tally.mean_token.observe((now - self._first) / after)
