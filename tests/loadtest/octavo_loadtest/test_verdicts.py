"""What is said of a run, for summaries that differ in one number from a good one."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest

from octavo_loadtest.stats import misses_allowed
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


@pytest.mark.parametrize(
    ("path", "last_good", "first_not", "name"),
    [
        ("client__cpu_share_max", 0.85, 0.851, "client"),
        ("client__late_p99_s", 0.05, 0.0501, "schedule"),
        ("lengths__output__realised_mean", 52.4, 52.6, "lengths"),
        ("lengths__output__realised_mean", 47.6, 47.4, "lengths"),
        ("lengths__prompt__realised_mean", 104.9, 105.1, "lengths"),
        ("chunks__tokens_per_chunk_mean", 1.2, 1.21, "chunks"),
        ("chunks__first_chunk_mean", 1.2, 1.21, "chunks"),
        ("counts__sent", 500, 499, "plan"),
        ("counts__warmup", 1, 0, "warm-up"),
    ],
)
def test_where_good_ends(path: str, last_good: float, first_not: float, name: str) -> None:
    assert changed(**{path: last_good})[name][0] == "good"
    assert changed(**{path: first_not})[name][0] != "good"


@pytest.mark.parametrize(
    ("lag", "ttft", "level"),
    [(0.03, 0.3, "good"), (0.0301, 9.0, "bad"), (0.02, 0.19, "warn"), (0.02, 0.21, "good"), (0.02, None, "good")],
)
def test_a_clients_delay_is_held_against_the_first_token(lag: float, ttft: float | None, level: str) -> None:
    assert changed(client__lag_p99_s=lag, latency__ttft__from_sent__p50=ttft)["client"][0] == level


@pytest.mark.parametrize(("failed", "level"), [(0, "good"), (1, "warn"), (5, "warn"), (6, "bad")])
def test_a_hundredth_of_failures_is_bad_only_beyond(failed: int, level: str) -> None:
    assert changed(counts__failed=failed, counts__errors={"x": failed})["failures"][0] == level


@pytest.mark.parametrize(
    ("due", "wanting"),
    [(43, "p90, p95, p99"), (44, "p95, p99"), (89, "p95, p99"), (90, "p99"), (458, "p99"), (459, None)],
)
def test_what_a_sample_is_too_small_for(due: int, wanting: str | None) -> None:
    """The numbers are those that `stats` gives: requests of which none may be beyond the bound."""
    found = changed(counts__due=due)["sample"]
    assert found[0] == ("warn" if wanting else "good")
    assert wanting is None or f"{due} requests are too few for {wanting} (" in found[1]
    least = {share: next(n for n in range(1, 500) if misses_allowed(n, share) >= 0) for share in (0.9, 0.95, 0.99)}
    assert least == {0.9: 44, 0.95: 90, 0.99: 459}


def test_shares_of_cached_tokens_are_of_the_prompts() -> None:
    cache = {"reported_by": 3, "prompt_tokens": 400, "reported": 100, "intended": 60, "unintended": 40.0}
    assert changed(cache=cache | {"contaminated": False})["prefix cache"] == (
        "good", "clean: 25.0% of prompt tokens cached, 15.0% intended",
    )  # fmt: skip
    found = changed(cache=cache | {"contaminated": True})["prefix cache"]
    assert found == ("bad", "contaminated: 25.0% of prompt tokens cached, 15.0% intended, 40 tokens beyond the plan")
    assert changed(cache=cache | {"prompt_tokens": 0, "contaminated": False})["prefix cache"][0] == "good"


def test_every_verdict_has_a_name_of_its_own_and_a_level() -> None:
    slos = [{"name": name, "interval": [0.9, 1.0], "met": True, "share": 1.0, "target": 0.9, "verdict": "passed"}
            for name in ("a", "b")]  # fmt: skip
    lines = judge(copy.deepcopy(GOOD) | {"slos": slos})
    names = [line["name"] for line in lines]
    assert len(set(names)) == len(names) == 13
    assert names[-2:] == ["SLO a", "SLO b"]
    assert {line["level"] for line in lines} == {"good"}


@pytest.mark.parametrize(
    ("mean", "counted", "text"),
    [
        (1.0, True, "1.00 tokens a chunk, 1.00 in the first (counted)"),
        (1.0, False, "1.00 tokens a chunk, 1.00 in the first (estimated from characters)"),
        (2.5, True, "2.50 tokens a chunk, 1.00 in the first (counted): gaps are between chunks, and token gaps deal "
         "each evenly to its tokens"),
        (2.5, False, "2.50 tokens a chunk, 1.00 in the first (estimated from characters): gaps are between chunks, and "
         "token gaps deal each evenly to its tokens; TPOT is as good as the estimate: --tokenizer counts exactly"),
    ],
)  # fmt: skip
def test_who_says_how_many_tokens_a_chunk_has(mean: float, counted: bool, text: str) -> None:
    assert changed(chunks__tokens_per_chunk_mean=mean, chunks__counted=counted)["chunks"][1] == text


def test_times_are_said_in_the_unit_that_is_named() -> None:
    late = changed(client__late_p50_s=0.0012, client__late_p99_s=0.0345)["schedule"][1]
    assert late == "kept: sent 1.2 ms after the schedule at p50, 34.5 ms at p99"
    assert changed()["steady"][1] == "rates are of 8.0 s without ramp and drain"  # from 1 to 9
