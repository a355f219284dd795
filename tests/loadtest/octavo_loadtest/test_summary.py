"""What a run comes to, in simulated time: each figure is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo_loadtest.arrivals import Arrivals
from octavo_loadtest.client import Broken
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.metrics import DEFINITIONS, derive
from octavo_loadtest.record import Chunk, Record
from octavo_loadtest.slo import parse
from octavo_loadtest.summary import cost, distribution, rates, summarize, worst_tenth
from octavo_loadtest.text import Calibration

Simulate = Callable[..., tuple[Run, Any]]
OPEN = Load(workload="balanced", scale=0.02, arrivals="constant", rate=10, requests=500, warmup=0)  # 10 tokens out


@pytest.fixture
def steady(simulated: Simulate) -> Run:
    return simulated(OPEN, ttft=0.2, itl=0.1)[0]


def test_rates_of_a_steady_run(steady: Run) -> None:
    """Ten requests a second of ten tokens, each 1.1 s in the server: 100 tokens/s, eleven in flight."""
    summary = summarize(steady)
    window = summary["throughput"]["steady"]
    assert window["start"] == pytest.approx(1.1, abs=1e-3)
    assert window["end"] == pytest.approx(49.9, abs=1e-3)
    assert window["requests_per_s"] == pytest.approx(10, rel=0.01)
    assert window["output_tokens_per_s"] == pytest.approx(100, rel=0.01)
    assert window["prompt_tokens_per_s"] == pytest.approx(100, rel=0.01)
    assert window["mean_in_flight"] == pytest.approx(11, rel=0.01)
    assert summary["throughput"]["overall"]["requests_per_s"] == pytest.approx(500 / 51, rel=1e-3)
    assert summary["offered"] == pytest.approx(
        {"span_s": 49.9, "requests_per_s": 10, "prompt_tokens_per_s": 100, "output_tokens_per_s": 100}, rel=1e-6
    )
    assert not summary["saturation"]["rising"]


def test_latencies_of_a_steady_run(steady: Run) -> None:
    latency = summarize(steady)["latency"]
    for key, seconds in (("ttft", 0.2), ("e2e", 1.1), ("tpot", 0.1), ("itl", 0.1), ("normalized", 0.11)):
        found = latency[key]["headline"]
        assert found["n"] == 500
        for name in ("mean", "p50", "p90", "p99", "min", "max"):
            assert found[name] == pytest.approx(seconds, abs=1e-5), (key, name)
    assert latency["gaps"]["answered_only"]["n"] == 500 * 9
    assert latency["gaps"]["worst_tenth_mean"] == pytest.approx(0.1, abs=1e-6)
    assert latency["ttft"]["from_sent"]["p50"] == pytest.approx(latency["ttft"]["from_schedule"]["p50"], abs=1e-6)


def test_counts_name_what_became_of_each(simulated: Simulate) -> None:
    def fault(number: int) -> Exception | bytes | None:
        return {3: Broken("gone"), 7: b"", 11: b'data: {"error": "no"}\n\n'}.get(number)

    counts = summarize(simulated(replace(OPEN, requests=40), ttft=0.1, itl=0.0, fault=fault)[0])["counts"]
    assert {key: counts[key] for key in ("planned", "due", "sent", "ok", "failed", "truncated", "rejected")} == {
        "planned": 40, "due": 40, "sent": 40, "ok": 37, "failed": 3, "truncated": 2, "rejected": 0,
    }  # fmt: skip
    assert counts["errors"] == {"broken": 1, "truncated": 1, "stream": 1}
    assert counts["finish_reasons"] == {"length": 37}


def test_failures_are_infinite_and_answers_only_are_without_them(simulated: Simulate) -> None:
    run, _ = simulated(OPEN, ttft=0.1, itl=0.0, fault=lambda number: Broken("x") if number % 5 == 0 else None)
    latency = summarize(run)["latency"]["ttft"]
    assert latency["headline"]["p50"] == pytest.approx(0.1, abs=1e-5)
    assert latency["headline"]["p90"] == latency["headline"]["mean"] == math.inf
    assert (latency["answered_only"]["n"], latency["headline"]["n"]) == (400, 500)
    assert latency["answered_only"]["p95"] == pytest.approx(0.1, abs=1e-5)


def test_a_run_of_nothing_but_failures_has_a_summary(simulated: Simulate) -> None:
    run, _ = simulated(OPEN, ttft=0.1, itl=0.0, fault=lambda number: Broken("x"))
    summary = summarize(run, [parse("interactive")])
    assert summary["slos"][0]["good"] == 0
    assert summary["slos"][0]["verdict"] == "failed"
    assert summary["throughput"]["steady"]["requests_per_s"] == 0
    assert math.isnan(summary["lengths"]["output"]["realised_mean"])


def test_a_run_of_which_nothing_was_sent_has_one_too(simulated: Simulate) -> None:
    """The first request never ends, and no other may be in flight: all but one were due and not sent."""
    run, _ = simulated(replace(OPEN, requests=50, concurrency=1, drain=1), ttft=1e9, itl=0.0)
    for record in run.records:
        record.sent = record.end = None
    summary = summarize(run, [parse("ttft=1")])
    assert (summary["counts"]["sent"], summary["counts"]["due"]) == (0, 50)
    assert summary["slos"][0]["share"] == 0
    assert summary["client"]["late_p99_s"] == math.inf


def test_an_slo_counts_all_that_were_due(simulated: Simulate) -> None:
    run, _ = simulated(OPEN, ttft=0.1, itl=0.0, slow=lambda number: 1.0 * (number % 10 == 0))
    (slo,) = summarize(run, [parse("ttft=0.5")], attainment=0.85)["slos"]
    assert (slo["good"], slo["share"], slo["met"]) == (450, 0.9, True)
    assert slo["interval"][0] < 0.9 < slo["interval"][1]
    assert slo["goodput_requests_per_s"] == pytest.approx(9, rel=0.02)


def test_dependent_requests_widen_an_slos_interval(simulated: Simulate) -> None:
    """The same share of bad requests, all in one stretch: the interval is no longer that of 500 coins."""
    bad = set(np.random.default_rng(0).permutation(500)[:50].tolist())
    apart, _ = simulated(OPEN, ttft=0.1, itl=0.0, slow=lambda number: 1.0 * (number in bad))
    together, _ = simulated(OPEN, ttft=0.1, itl=0.0, slow=lambda number: 1.0 * (200 <= number < 250))
    widths = []
    for run in (apart, together):
        (slo,) = summarize(run, [parse("ttft=0.5")])["slos"]
        assert slo["share"] == 0.9
        widths.append(slo["interval"][1] - slo["interval"][0])
    assert widths[0] < 0.06
    assert widths[1] > 3 * widths[0]


def test_lengths_and_chunks(steady: Run) -> None:
    summary = summarize(steady)
    assert summary["lengths"]["output"] == {
        "planned_mean": 10, "planned_median": 10, "realised_mean": 10, "realised_median": 10,
    }  # fmt: skip
    assert summary["lengths"]["counted_by"] == "server"
    assert summary["chunks"] == {
        "tokens_per_chunk_mean": 1, "tokens_per_chunk_max": 1, "first_chunk_mean": 1, "whole": 0, "counted": True,
    }  # fmt: skip


def test_too_few_requests_have_no_percentile() -> None:
    found = distribution(np.arange(43.0))
    assert (found["p90"], found["p90_bound"]) == (None, None)
    assert found["p50"] == 21
    assert distribution(np.empty(0))["n"] == 0


def test_a_bound_is_no_lower_than_what_it_bounds() -> None:
    rng = np.random.default_rng(0)
    found = distribution(rng.exponential(size=800))
    for name in ("p50", "p90", "p95", "p99"):
        assert found[name] <= found[f"{name}_bound"] < math.inf
    assert found["worth"] == 800


def test_the_worst_tenth() -> None:
    assert worst_tenth(np.arange(100.0)) == 94.5
    assert worst_tenth(np.array([3.0])) == 3
    assert math.isnan(worst_tenth(np.empty(0)))


def test_costs() -> None:
    assert cost(100.0, 3.6)["output_tokens_per_dollar"] == pytest.approx(100_000)
    assert cost(100.0, 3.6)["dollars_per_million_output_tokens"] == pytest.approx(10)
    assert cost(0.0, 3.6)["dollars_per_million_output_tokens"] == math.inf


def test_a_price_is_of_the_steady_rate(steady: Run) -> None:
    assert summarize(steady, price=3.6)["cost"]["output_tokens_per_dollar"] == pytest.approx(100_000, rel=0.01)
    assert "cost" not in summarize(steady)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_closed_loop_keeps_the_law_of_response_times(at_once: int, simulated: Simulate) -> None:
    """Two slots of 1.1 s a request: that many at once take their share of them, and wait for the rest."""
    load = replace(OPEN, arrivals="closed", concurrency=at_once, requests=150)
    summary = summarize(simulated(load, ttft=0.2, itl=0.1, slots=2)[0])
    whole, e2e = summary["throughput"]["overall"], summary["latency"]["e2e"]["headline"]
    assert whole["requests_per_s"] == pytest.approx(min(at_once, 2) / 1.1, rel=0.03)
    assert whole["requests_per_s"] * e2e["mean"] == pytest.approx(at_once, rel=0.05)
    assert whole["mean_in_flight"] == pytest.approx(at_once, rel=0.05)


def test_waits_are_those_of_the_queue_that_is_simulated(simulated: Simulate) -> None:
    """M/D/1 at half its capacity: Pollaczek and Khinchine's mean wait is half a service, charged to the server."""
    load = replace(OPEN, arrivals="poisson", rate=1.0, requests=800)
    summary = summarize(simulated(load, ttft=0.5, itl=0.0, slots=1)[0])
    assert summary["latency"]["ttft"]["headline"]["mean"] == pytest.approx(0.75, rel=0.1)
    assert summary["latency"]["ttft"]["from_sent"]["mean"] == pytest.approx(0.75, rel=0.1)
    whole = summary["throughput"]["overall"]
    arrived = whole["requests_per_s"] * summary["latency"]["e2e"]["headline"]["mean"]
    assert whole["mean_in_flight"] == pytest.approx(arrived, rel=0.02)  # Little's law
    assert not summary["saturation"]["rising"]


def test_what_waits_in_the_client_is_charged_too(simulated: Simulate) -> None:
    """The same queue before the server: from when they were due requests wait as long, from when they were sent not."""
    load = replace(OPEN, arrivals="poisson", rate=1.0, requests=800, concurrency=1)
    latency = summarize(simulated(load, ttft=0.5, itl=0.0)[0])["latency"]
    assert latency["ttft"]["headline"]["mean"] == pytest.approx(0.75, rel=0.1)
    assert latency["ttft"]["from_sent"]["mean"] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(("factor", "rising"), [(0.8, False), (1.5, True)])
def test_an_overloaded_server_is_told_from_a_busy_one(factor: float, rising: bool, simulated: Simulate) -> None:
    load = replace(OPEN, rate=factor * 2 / 1.1, requests=300)
    assert summarize(simulated(load, ttft=0.2, itl=0.1, slots=2)[0])["saturation"]["rising"] == rising


# ---- figures of records that are written by hand ---------------------------------------------------------------------


def answered(index: int, at: float, *chunks: tuple[float, int], end: float, **fields: Any) -> Record:
    """A request due and sent at `at` (s), with (s, tokens so far) for its chunks."""
    made = [Chunk(int(when * 1e9), "text", 4, tokens) for when, tokens in chunks]
    usage = {"prompt_tokens": 10, "completion_tokens": chunks[-1][1] if chunks else 0}
    known: dict[str, Any] = {"planned_prompt_tokens": 8, "planned_output_tokens": 4, "planned_cached_tokens": 0}
    times = {"scheduled": int(at * 1e9), "sent": int(at * 1e9), "end": int(end * 1e9)}
    rest: dict[str, Any] = {"usage": usage, "chunks": made, "finish_reason": "stop", "status": 200}
    return Record(index, f"s{index}", 0, 0, **{**known, **times, **rest, **fields})


def of(*records: Record, **fields: Any) -> Run:
    load = Load(requests=len(records), warmup=0)
    run = Run(Target("http://x", "m"), load, Arrivals("constant"), len(records), "salt", Calibration(), 0, 0.0)
    run.records = list(records)
    return replace(run, **fields)


def test_rates_of_a_window_count_what_came_within_it() -> None:
    """Two answers, of 3 and 2 tokens, of 10 prompt tokens each; the window of 1 to 3 s has one end and three tokens."""
    records = [answered(0, 0.0, (0.5, 1), (1.5, 3), end=1.6), answered(1, 1.0, (2.5, 1), (4.0, 2), end=4.0)]
    measures = derive(records, DEFINITIONS["octavo"])
    assert rates(records, measures, (1.0, 3.0)) == {
        "start": 1.0, "end": 3.0, "requests_per_s": 0.5, "output_tokens_per_s": 1.5, "prompt_tokens_per_s": 5.0,
        "peak_output_tokens_per_s": 2.0,  # of the second from 0.5 s + 1 on
        "mean_in_flight": pytest.approx((0.6 + 2.0) / 2),
    }  # fmt: skip
    nothing = rates(records, measures, (1.0, 1.0))
    assert set(nothing) == set(rates(records, measures, (1.0, 3.0)))
    assert all(math.isnan(value) for value in nothing.values())


def test_a_failed_requests_tokens_were_computed_and_its_answer_was_none() -> None:
    records = [
        answered(0, 0.0, (1.0, 2), end=2.0),
        answered(1, 0.0, (1.0, 2), end=2.0, error="truncated: no end"),
    ]
    whole = summarize(of(*records))["throughput"]["overall"]
    assert (whole["requests_per_s"], whole["output_tokens_per_s"], whole["prompt_tokens_per_s"]) == (0.5, 2.0, 5.0)


@pytest.mark.parametrize(
    ("error", "status", "rejected", "truncated"),
    [("http 429: busy", 429, 1, 0), ("http 503: no", 503, 1, 0), ("http 500: no", 500, 0, 0),
     ("truncated: no end", 200, 0, 1), ("broken: reset", None, 0, 1), ("unsent: waited", None, 0, 0)],
)  # fmt: skip
def test_failures_by_kind(error: str, status: int | None, rejected: int, truncated: int) -> None:
    run = of(answered(0, 0.0, (1.0, 2), end=2.0), answered(1, 0.0, end=2.0, error=error, status=status))
    found = summarize(run)["counts"]
    assert (found["rejected"], found["truncated"], found["failed"], found["ok"]) == (rejected, truncated, 1, 1)
    assert found["errors"] == {error.split(":")[0]: 1}
    assert found["finish_reasons"] == {"stop": 1}


def test_what_a_cache_was_not_meant_to_have() -> None:
    """Beyond the plan, the template's 5 tokens and a block and a half; over a hundredth of the prompts is too much."""

    def cached(*tokens: int | None, planned: int = 0) -> dict[str, Any]:
        records = [
            answered(i, 0.0, (1.0, 1), end=1.0, planned_cached_tokens=planned,
                     usage={"prompt_tokens": 1000, "completion_tokens": 1}
                     | ({} if each is None else {"prompt_tokens_details": {"cached_tokens": each}}))
            for i, each in enumerate(tokens)
        ]  # fmt: skip
        found: dict[str, Any] = summarize(of(*records, calibration=Calibration(1.0, 5.0)))["cache"]
        return found

    assert cached(None, None)["reported_by"] == 0
    assert cached(37, 0) == {
        "reported_by": 2, "prompt_tokens": 2000, "intended": 0, "reported": 37, "unintended": 0, "contaminated": False,
    }  # fmt: skip
    assert (cached(57, 0)["unintended"], cached(57, 0)["contaminated"]) == (20, False)
    assert (cached(58, 0)["unintended"], cached(58, 0)["contaminated"]) == (21, True)
    assert (cached(137, None, planned=100)["unintended"], cached(137, None, planned=100)["prompt_tokens"]) == (0, 1000)
    assert cached(0, 137, planned=100)["unintended"] == 0  # what one lacks is no room for another


def test_chunks_that_hold_several_tokens() -> None:
    """Two and three tokens in one answer, all four at once in another: the mean is of chunks."""
    found = summarize(of(answered(0, 0.0, (1.0, 2), (2.0, 5), end=2.0), answered(1, 0.0, (1.0, 4), end=1.0)))["chunks"]
    assert found == {
        "tokens_per_chunk_mean": 3.0, "tokens_per_chunk_max": 4.0, "first_chunk_mean": 3.0, "whole": 1, "counted": True,
    }  # fmt: skip


def test_an_offered_load_is_of_the_arrivals_and_not_of_the_answers() -> None:
    """Three arrivals in 4 s have two gaps: half a request a second, though the server took 20 s."""
    run = of(*(answered(i, 2.0 * i, (19.0, 1), end=20.0) for i in range(3)))
    assert summarize(run)["offered"] == {
        "span_s": 4.0, "requests_per_s": 0.5, "prompt_tokens_per_s": 5.0, "output_tokens_per_s": 2.0,
    }  # fmt: skip
    alone = summarize(of(answered(0, 0.0, (1.0, 1), end=1.0)))["offered"]
    assert (alone["span_s"], math.isnan(alone["requests_per_s"])) == (0, True)


@pytest.mark.parametrize(
    ("good", "interval"),
    # Wilson (1927), 95 %: 10 of 10, 9 of 10 and 5 of 10, as statsmodels and Newcombe's tables have them
    [(10, (0.7225, 1.0)), (9, (0.5958, 0.9821)), (5, (0.2366, 0.7634))],
)
def test_an_slos_interval_is_wilsons(good: int, interval: tuple[float, float]) -> None:
    order = [0, 5, 2, 7, 4, 9, 6, 1, 8, 3]
    run = of(*(answered(i, float(i), (i + (0.1 if order[i] < good else 1.0), 1), end=i + 1.0) for i in range(10)))
    (found,) = summarize(run, [parse("ttft=0.5")], attainment=0.5)["slos"]
    assert (found["good"], found["share"], found["met"], found["worth"]) == (good, good / 10, good >= 5, 10)
    assert found["interval"] == pytest.approx(interval, abs=1e-4)
    assert found["verdict"] == ("unresolved" if good == 5 else "passed")
