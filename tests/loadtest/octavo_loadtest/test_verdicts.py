"""What is said of a run, for summaries that differ in one number from a good one."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest

from octavo_loadtest.verdicts import judge

E2E = {"worth": 480.0, "p90": 1.0, "p90_bound": 1.1, "p95_bound": 1.2, "p99_bound": 1.3}
GOOD: dict[str, Any] = {
    "target": {"api": "chat"},
    "closed": False,
    "load": {"concurrency": 0, "warmup": 4},
    "client": {"lag_p99_s": 0.001, "cpu_share_max": 0.1, "late_p50_s": 0.001, "late_p99_s": 0.002},
    "latency": {"ttft": {"from_sent": {"p50": 0.1}}, "e2e": {"headline": E2E}},
    "counts": {
        "planned": 500, "due": 500, "sent": 500, "failed": 0, "errors": {}, "interrupted": False, "warmup": 4,
    },
    "throughput": {"steady": {"start": 1.0, "end": 9.0}, "overall": {"start": 0.0, "end": 10.0}},
    "cache": {"reported_by": 500, "prompt_tokens": 100, "reported": 10, "intended": 10, "unintended": 0.0,
              "contaminated": False},
    "lengths": {
        "prompt": {"planned_mean": 100.0, "realised_mean": 101.0},
        "output": {"planned_mean": 50.0, "realised_mean": 50.0},
        "counted_by": "server",
    },
    "chunks": {"tokens_per_chunk_mean": 1.0, "first_chunk_mean": 1.0, "counted": True, "whole": 0},
    "saturation": {"rising": False},
    "slos": [],
}  # fmt: skip


def changed(**paths: Any) -> dict[str, tuple[str, str]]:
    """Verdicts on the good summary with `a__b=value` put in: name -> (level, text)."""
    summary = copy.deepcopy(GOOD)
    for path, value in paths.items():
        *steps, last = path.split("__")
        inside = summary
        for step in steps:
            inside = inside[step]
        inside[last] = value
    return {line["name"]: (line["level"], line["text"]) for line in judge(summary)}


def test_a_good_run_is_good_throughout() -> None:
    assert {level for level, _ in changed().values()} == {"good"}


@pytest.mark.parametrize(
    ("change", "name", "level", "said"),
    [
        ({"client__cpu_share_max": 0.9}, "client", "bad", "--processes"),
        ({"client__lag_p99_s": 0.04}, "client", "bad", "busy with other work"),
        ({"client__lag_p99_s": 0.02}, "client", "warn", "over a tenth of the TTFT"),
        ({"client__late_p99_s": 0.2}, "schedule", "bad", "not kept"),
        ({"client__late_p99_s": math.inf, "load__concurrency": 2}, "schedule", "warn", "held back by the cap"),
        ({"closed": True}, "schedule", "good", "closed loop"),
        ({"closed": True}, "queue", "good", "closed loop"),
        ({"counts__sent": 490}, "plan", "warn", "490 of 500 .* the end, 10 more were due and not"),
        ({"counts__sent": 490, "counts__due": 490}, "plan", "warn", "sent before the end; --drain"),
        ({"counts__sent": 7, "counts__due": 9, "counts__interrupted": True}, "plan", "warn",
         "interrupted after 7 of 500 requests, 2 more were due"),
        ({"throughput__steady__end": 10.0}, "steady", "warn", "less than two answers"),
        ({"load__warmup": 0}, "warm-up", "warn", "cold server"),
        ({"counts__warmup": 0}, "warm-up", "warn", "0 requests before"),
        ({"cache__reported_by": 0}, "prefix cache", "warn", "cannot be seen"),
        ({"cache__contaminated": True}, "prefix cache", "bad", "contaminated: 10.0% of prompt tokens"),
        ({"counts__failed": 6, "counts__errors": {"unsent": 6}}, "failures", "bad", "6 of 500 requests.*6 unsent"),
        ({"counts__failed": 5, "counts__errors": {"empty": 5}}, "failures", "warn", "5 empty"),
        ({"counts__interrupted": True}, "failures", "warn", "interrupted"),
        ({"lengths__output__realised_mean": 40.0}, "lengths", "warn", "40 tokens of 50"),
        ({"lengths__prompt__realised_mean": 110.0}, "lengths", "warn", "prompts 110 of 100"),
        ({"lengths__prompt__planned_mean": math.nan}, "lengths", "warn", "of prompts it says nothing"),
        ({"lengths__counted_by": "chunks"}, "lengths", "warn", "--tokenizer"),
        ({"chunks__tokens_per_chunk_mean": 3.0}, "chunks", "warn", "gaps are between chunks"),
        ({"chunks__first_chunk_mean": 3.0, "chunks__counted": False}, "chunks", "warn", "as good as the estimate"),
        ({"chunks__whole": 3}, "chunks", "warn", "3 answers came whole"),
        ({"counts__due": 89}, "sample", "warn", "too few for p95, p99"),
        ({"latency__e2e__headline__p99_bound": math.inf, "latency__e2e__headline__worth": 60.4}, "sample", "warn",
         "worth 60 independent ones: nothing bounds p99"),
        ({"saturation__rising": True}, "queue", "warn", "overloaded"),
    ],
)  # fmt: skip
def test_one_thing_that_is_not(change: dict[str, Any], name: str, level: str, said: str) -> None:
    found = changed(**change)
    assert found[name][0] == level, found[name]
    assert re.search(said, found[name][1]), found[name]
    others = {key for key, (each, _) in found.items() if each != "good"} - {name}
    assert others <= ({"failures", "sample"} if "counts__interrupted" in change else set())


def test_failures_alone_leave_the_sample_as_it_is() -> None:
    """With a tenth of failures the p99 itself is infinite: that is said of failures, not of the sample."""
    infinite = {f"latency__e2e__headline__{key}": math.inf for key in ("p90", "p90_bound", "p95_bound", "p99_bound")}
    assert changed(**infinite)["sample"][0] == "good"


@pytest.mark.parametrize(
    ("verdict", "met", "level", "said"),
    [
        ("passed", True, "good", "met: 99.5% of requests, 99% asked; passed, 98.0% to 99.9% with 95 % confidence"),
        ("failed", False, "bad", "missed: 99.5% of requests, 99% asked; failed"),
        ("unresolved", True, "warn", "unresolved: so few requests say 98.0% to 99.9%"),
        ("unresolved", False, "bad", "missed"),
    ],
)
def test_an_slo(verdict: str, met: bool, level: str, said: str) -> None:
    slo = {"name": "s", "interval": [0.98, 0.999], "met": met, "share": 0.995, "target": 0.99, "verdict": verdict}
    found = changed(slos=[slo])["SLO s"]
    assert found[0] == level
    assert said in found[1]


def test_embeddings_have_no_tokens_to_judge() -> None:
    found = changed(target__api="embeddings")
    assert not {"prefix cache", "chunks"} & set(found)
    assert found["lengths"] == ("good", "texts of 101 tokens, 100 planned (mean)")
    assert changed(target__api="embeddings", lengths__prompt__planned_mean=math.nan)["lengths"][0] == "warn"
    assert changed(target__api="embeddings", lengths__prompt__realised_mean=120.0)["lengths"][0] == "warn"
