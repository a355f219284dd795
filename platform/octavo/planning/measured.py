"""Compares a measured run with the plan, and fits a cost model to it.

Two kinds of file can be read. JSON with any of

    {"steps":    [{"tokens": 512, "sequences": 1, "attended": 131328, "seconds": 0.21}, ...],
     "requests": [{"prompt_tokens": 100, "cached_tokens": 0, "output_tokens": 50,
                   "start": 0.0, "first_token": 0.31, "end": 1.4}, ...],
     "bytes":    {"weights": 538000000, "kv_per_token": 46080}}

(times in seconds of one clock), or the load tester's records, one JSON object per line and request.

An engine's steps record what was in them. For a client's request this is known only if no other request overlapped it:
then its first token took one step of its uncached prompt, and each further token one step of one token. Requests that
overlap others are left out, and their number is reported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from octavo.cost_model import CostModel, StepWork, attended
from octavo.errors import ConfigError
from octavo.planning.roofline import Roofline

_FEATURES = ("step", "token", "sequence", "attended position")


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """`count` equal steps that ran: the work in one (as in `StepWork`), and its seconds."""

    tokens: int
    sequences: int
    attended: int
    seconds: float
    count: int = 1

    @property
    def is_decode(self) -> bool:
        """Whether it computed one token per sequence."""
        return self.tokens == self.sequences

    @property
    def work(self) -> StepWork:
        """Its work. The context is unknown and 0, so the fit attributes everything to the other terms."""
        return StepWork(self.tokens, self.sequences, self.attended, 0, has_prompts=not self.is_decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRequest:
    """One request as its client saw it; times in seconds of one clock."""

    prompt_tokens: int
    output_tokens: int
    start: float
    first_token: float
    end: float
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What was measured."""

    steps: list[MeasuredStep] = field(default_factory=list)
    requests: list[MeasuredRequest] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured speed of steps of one kind and their roofline, in tokens per second."""

    kind: str
    steps: int
    measured: float
    ceiling: float

    @property
    def share(self) -> float:
        """Share of the roofline that was reached."""
        return self.measured / self.ceiling


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measured run and its prediction.

    Attributes:
        speeds: prefill and decode, if the run has such steps.
        bytes: what -> (predicted, measured).
        coefficients: of the fitted cost model: seconds per step, token, sequence and attended position; None with fewer
            than 8 steps, or if the steps are too similar to determine any coefficient.
        median_error: median error of the fitted model on the same steps, relative to their measured times.
        left_out: requests that overlapped others, and prompts that took several steps.
    """

    speeds: list[Speed]
    bytes: dict[str, tuple[float, int]]
    coefficients: dict[str, float] | None
    median_error: float | None
    left_out: int


def read_run(file: Path) -> MeasuredRun:
    """Read a run's file.

    Raises:
        ConfigError: it cannot be read or lacks something; the message says what.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            return MeasuredRun(requests=[request for line in lines if (request := _of_record(line))])
        content = json.loads(text)
        return MeasuredRun(
            [MeasuredStep(**step) for step in content.get("steps", [])],
            [MeasuredRequest(**request) for request in content.get("requests", [])],
            content.get("bytes", {}),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        wanted = (
            f"steps of {_names(MeasuredStep)}, requests of {_names(MeasuredRequest)}, bytes of weights, kv_per_token"
        )
        raise ConfigError(f"{file} is no measured run ({error}); expected {wanted}") from error


def compare(run: MeasuredRun, roofline: Roofline, chunk: int) -> Comparison:
    """Compare a run with the roofline.

    Args:
        chunk: most tokens of one step, `max_num_batched_tokens`; a longer prompt's time is that of several steps.

    Raises:
        ConfigError: the run has nothing that can be compared.
    """
    alone = [request for request in run.requests if not _overlaps(request, run.requests)]
    short = [request for request in alone if request.prompt_tokens - request.cached_tokens <= chunk]
    steps = run.steps + [step for request in short for step in _steps(request)]
    holding = roofline.holding
    predicted = {"weights": holding.weight_bytes(), "kv_per_token": float(holding.kv_bytes_per_token())}
    sizes = {name: (predicted[name], size) for name, size in run.bytes.items() if name in predicted}
    if not steps and not sizes:
        raise ConfigError("the run has no step, no request that ran alone and no bytes: nothing can be compared")
    coefficients, error = _fit(steps)
    return Comparison(_speeds(steps, roofline), sizes, coefficients, error, len(run.requests) - len(short))


def _names(record: type) -> str:
    return ", ".join(f.name for f in fields(record))


def _of_record(line: dict[str, Any]) -> MeasuredRequest | None:
    """The load tester's record of one request (nanoseconds); None for one that failed or was not counted."""
    times = [chunk[0] for chunk in line["chunks"] if chunk[1] in ("text", "reasoning", "tool")]
    usage = line.get("usage") or {}
    if line.get("error") or not times or not usage.get("prompt_tokens") or not usage.get("completion_tokens"):
        return None
    return MeasuredRequest(
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        output_tokens=usage["completion_tokens"],
        start=line["sent"] / 1e9,
        first_token=times[0] / 1e9,
        end=times[-1] / 1e9,
    )


def _overlaps(request: MeasuredRequest, others: list[MeasuredRequest]) -> bool:
    return any(o is not request and o.start < request.end and request.start < o.end for o in others)


def _steps(request: MeasuredRequest) -> list[MeasuredStep]:
    """The steps of a request that ran alone: one for its prompt, and its further tokens at their mean context."""
    new, prompt = request.prompt_tokens - request.cached_tokens, request.prompt_tokens
    positions = attended(request.cached_tokens, new)
    steps = [MeasuredStep(new, 1, positions, request.first_token - request.start)]
    further = request.output_tokens - 1
    if further > 0:
        seconds = (request.end - request.first_token) / further
        steps.append(MeasuredStep(1, 1, round(prompt + (further + 1) / 2), seconds, count=further))
    return steps


def _speeds(steps: list[MeasuredStep], roofline: Roofline) -> list[Speed]:
    kinds = {
        "prefill": [step for step in steps if not step.is_decode],
        "decode": [step for step in steps if step.is_decode],
    }
    return [_speed(kind, some, roofline) for kind, some in kinds.items() if some]


def _speed(kind: str, steps: list[MeasuredStep], roofline: Roofline) -> Speed:
    tokens = sum(s.tokens * s.count for s in steps)
    measured = sum(s.seconds * s.count for s in steps)
    least = sum(roofline.step_seconds(s.tokens, s.sequences, s.attended) * s.count for s in steps)
    return Speed(kind, sum(s.count for s in steps), tokens / measured, tokens / least)


def _fit(steps: list[MeasuredStep]) -> tuple[dict[str, float] | None, float | None]:
    """Fit the engine's cost model with equal weight for all steps. Similar steps leave coefficients undetermined: if
    each has one sequence, seconds per step and seconds per sequence cannot be told apart."""
    import numpy as np

    rows = np.array([(1, s.tokens, s.sequences, s.attended) for s in steps], float).reshape(-1, 4)
    scale = np.abs(rows).max(axis=0, initial=1.0)
    if len(steps) < 8 or np.linalg.matrix_rank(rows / scale, tol=1e-3) < 4:
        return None, None
    model = CostModel(forgetting=1.0)
    for step in steps:
        model.observe(step.work, step.seconds)
    errors = [abs(model.predict(step.work) / step.seconds - 1) for step in steps]
    return dict(zip(_FEATURES, model.coefficients[: len(_FEATURES)], strict=True)), median(errors)
