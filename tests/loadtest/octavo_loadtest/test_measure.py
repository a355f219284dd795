"""The whole client against a server that knows what it did: times are compared with the server's own log.

The machine may be busy: what was done late is then late in both logs, and what must never happen (a byte read before it
was written) is checked without any tolerance.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest

from octavo_loadtest import plan
from octavo_loadtest.fake_server import Behaviour, FakeServer, Served, running
from octavo_loadtest.job import Orders, Outcome, Pulse, Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Reader, Run, measure, to_record
from octavo_loadtest.metrics import DEFINITIONS, derive
from octavo_loadtest.record import Record
from octavo_loadtest.sender import Sender
from octavo_loadtest.server import find_model, prepare
from octavo_loadtest.slo import parse
from octavo_loadtest.stats import ks_critical, ks_distance
from octavo_loadtest.summary import summarize

SMALL = Load(workload="balanced", scale=0.03, rate=40, requests=60, warmup=1)  # 15 tokens in, 15 out


def attack(
    behaviour: Behaviour, load: Load, target: Callable[[Target], Target] = lambda t: t
) -> tuple[Run, FakeServer]:
    with running(behaviour) as fake:
        learnt, calibration = prepare(Target(fake.url, find_model(fake.url, {})))
        return measure(load, target(learnt), calibration), fake


def verdicts(summary: dict[str, Any]) -> dict[str, str]:
    return {verdict["name"]: verdict["level"] for verdict in summary["verdicts"]}


@pytest.fixture(scope="module")
def plain() -> tuple[Run, FakeServer]:
    return attack(Behaviour(cache=True), SMALL)


def pairs(run: Run, fake: FakeServer) -> list[tuple[Record, Served]]:
    served = {each.name: each for each in fake.log}
    return [(record, served[f"load-{record.index}"]) for record in run.records]


def test_first_token_and_gaps_are_exact(plain: tuple[Run, FakeServer]) -> None:
    run, fake = plain
    measures = derive(run.records, DEFINITIONS["octavo"])
    ttft_off, itl_off = [], []
    for i, (_, served) in enumerate(pairs(run, fake)):
        done = (served.wrote[0] - served.received) / 1e9
        ttft_off.append(measures.latency["from_sent"]["ttft"][i] - done)
        gap = (served.wrote[-1] - served.wrote[0]) / 1e9 / (len(served.wrote) - 1)
        itl_off.append(measures.latency["from_sent"]["itl"][i] - gap)
    assert len(ttft_off) == 60
    assert min(ttft_off) > 0  # two trips over the loopback
    assert np.median(ttft_off) < 0.01
    assert np.median(np.abs(itl_off)) < 0.01


def test_every_token_is_there(plain: tuple[Run, FakeServer]) -> None:
    run, fake = plain
    for record, served in pairs(run, fake):
        assert record.ok
        assert len(record.token_chunks) == len(served.wrote) == served.tokens == record.output_tokens == 15
        assert [chunk.completion_tokens for chunk in record.token_chunks] == list(range(1, 16))
        assert (record.status, record.finish_reason, record.headers["x-fake"]) == (200, "length", "1")


def test_sent_times_follow_the_plan(plain: tuple[Run, FakeServer]) -> None:
    run, fake = plain
    assert run.plan is not None
    planned = np.array([session.at for session in run.plan.sessions])
    sent = np.array([record.sent for record in run.records]) / 1e9
    received = np.sort([served.received for served in fake.log]) / 1e9
    assert (sent >= planned).all()
    assert np.median(sent - planned) < 0.05
    critical = 2 * ks_critical(60, 60)  # twice: room for a busy machine; test_sender.py is exact
    assert ks_distance(np.diff(planned), np.diff(sent)) < critical
    assert ks_distance(np.diff(planned), np.diff(received)) < critical


def test_a_good_run_is_believed(plain: tuple[Run, FakeServer]) -> None:
    summary = summarize(plain[0], [parse("ttft=10")], price=1.0)
    found = verdicts(summary)
    assert {found[name] for name in ("warm-up", "prefix cache", "failures", "lengths", "chunks")} == {"good"}
    assert found["sample"] == "warn"
    assert summary["counts"]["ok"] == summary["slos"][0]["good"] == 60
    assert summary["offered"]["requests_per_s"] == pytest.approx(59 / (run_span(plain[0])), rel=1e-6)
    assert summary["lengths"]["prompt"]["realised_mean"] == summary["lengths"]["prompt"]["planned_mean"] == 15
    overall = summary["throughput"]["overall"]
    assert overall["output_tokens_per_s"] * (overall["end"] - overall["start"]) == pytest.approx(900, rel=0.03)
    assert summary["latency"]["ttft"]["from_schedule"]["p99"] is None  # 60 requests say nothing about it


def run_span(run: Run) -> float:
    due = [record.scheduled for record in run.records]
    return (max(due) - min(due)) / 1e9


def test_faults_are_counted_and_infinite() -> None:
    behaviour = Behaviour(every_reject=5, every_truncated=7, every_error_event=11, itl=0.001)
    run, fake = attack(behaviour, replace(SMALL, requests=50))
    expected = {served.name: served.fault for served in fake.log}
    starts = {"reject": "http 429", "truncated": "broken", "error_event": ("broken", "stream"), None: "fine"}
    for record in run.records:
        wanted = starts[expected[f"load-{record.index}"]]
        assert (record.error or "fine").startswith(wanted), record.error
    summary = summarize(run)
    failed = sum(fault is not None for fault in expected.values())
    assert summary["counts"]["failed"] == failed
    assert summary["counts"]["rejected"] == 10
    assert summary["counts"]["truncated"] >= 6
    assert len(fake.log) == 50  # nothing was tried again
    assert summary["latency"]["ttft"]["from_schedule"]["p90"] == np.inf
    assert summary["latency"]["ttft"]["answered_only"]["max"] < np.inf
    assert verdicts(summary)["failures"] == "bad"


def test_a_stall_shows_from_the_schedule_and_hides_from_the_send() -> None:
    """Coordinated omission: two requests may be in flight, so the others wait in the client while the server stalls."""
    load = replace(SMALL, arrivals="constant", rate=40, requests=60, concurrency=2, scale=0.004)
    run, _ = attack(Behaviour(ttft=0.01, itl=0.002, stall_at=0.4, stall_for=0.8), load)
    latency = derive(run.records, DEFINITIONS["octavo"]).latency
    slow = {origin: int((values["ttft"] > 0.15).sum()) for origin, values in latency.items()}
    assert slow["from_sent"] <= 4
    assert slow["from_schedule"] > 5 * slow["from_sent"]
    assert verdicts(summarize(run))["schedule"] == "warn"


def test_coalesced_chunks_do_not_change_the_time_per_token() -> None:
    run, fake = attack(Behaviour(coalesce=5, itl=0.01), replace(SMALL, rate=60, requests=30, scale=0.06))
    summary = summarize(run)
    assert summary["chunks"]["tokens_per_chunk_max"] == 5
    assert verdicts(summary)["chunks"] == "warn"
    truth = [(s.wrote[-1] - s.wrote[0]) / 1e9 / (s.sent_tokens - 1) for s in fake.log]
    assert summary["latency"]["tpot"]["answered_only"]["p50"] == pytest.approx(float(np.median(truth)), abs=0.002)
    assert summary["latency"]["gaps"]["answered_only"]["p50"] > 3 * np.median(truth)


def test_a_closed_loop_keeps_its_concurrency() -> None:
    load = replace(SMALL, arrivals="closed", concurrency=5, requests=25, processes=2)
    run, _ = attack(Behaviour(slots=50), load)
    from octavo_loadtest.metrics import in_flight

    sent, end = (np.array([getattr(record, key) for record in run.records]) / 1e9 for key in ("sent", "end"))
    assert {record.process for record in run.records} == {0, 1}
    assert in_flight(sent, end)[1].max() == 5
    assert len(run.records) == 25


def test_conversations_carry_their_history() -> None:
    load = Load(workload="chat-sharegpt", scale=0.02, rate=30, requests=60, think=0.0005, warmup=0, max_tokens=200)
    run, _ = attack(Behaviour(itl=0.0005, cache=True), load)
    later = [record for record in run.records if record.turn > 0]
    assert later
    assert all(record.ok for record in run.records)
    ends = {(record.session, record.turn): record.end for record in run.records}
    for record in later:
        assert record.sent >= (ends[record.session, record.turn - 1] or 0)
        # the template counts once, and an answer has the tokens that were planned
        assert record.prompt_tokens == pytest.approx(record.planned_prompt_tokens, abs=12)
    cache = summarize(run)["cache"]
    assert cache["reported"] > 0
    assert not cache["contaminated"]


def test_contamination_is_flagged() -> None:
    """A server (or a client that does not salt) whose cache hits prompts that share nothing."""
    run, _ = attack(Behaviour(cache=True, itl=0.001), replace(SMALL, scale=0.3, requests=20))
    assert not summarize(run)["cache"]["contaminated"]
    for record in run.records[1:]:
        assert record.usage is not None
        record.usage["prompt_tokens_details"] = {"cached_tokens": 128}
    summary = summarize(run)
    assert summary["cache"]["contaminated"]
    assert verdicts(summary)["prefix cache"] == "bad"


def test_a_server_that_is_gone() -> None:
    run, _ = attack(Behaviour(), SMALL, lambda target: replace(target, url="http://127.0.0.1:9"))
    assert all((record.error or "").startswith("connect:") for record in run.records)


def test_a_strict_server_is_asked_without_extras() -> None:
    with running(Behaviour(strict=True)) as fake:
        target, calibration = prepare(Target(fake.url, "fake"))
    assert "ignore_eos" not in target.body
    assert calibration.overhead == 10


def test_a_slow_client_is_caught() -> None:
    """The sender's own loop blocks for 60 ms at a time, as parsing in it would: the verdicts say so."""
    with running(Behaviour(itl=0.001)) as fake:
        target, calibration = prepare(Target(fake.url, "fake"))
        made = plan.make(replace(SMALL, rate=50, requests=50))
        sessions = plan.sessions(made, "salt", calibration)
        outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ours, theirs = Pipe()
        origin = time.perf_counter_ns()

        async def both() -> None:
            work = asyncio.create_task(Sender(Orders(0, target, tuple(sessions)), origin, outbox).run(theirs))
            while not work.done():
                time.sleep(0.06)
                await asyncio.sleep(0.001)
            await work

        asyncio.run(both())
        ours.close()
        theirs.close()
    run = Run(target, made.load, made.arrivals, made.requests, "salt", calibration, 1, time.time(), plan=made)
    turns = {turn.index: turn for session in sessions for turn in session.turns}
    while not outbox.empty():
        message = outbox.get()
        if isinstance(message, Outcome):
            run.records.append(to_record(message, 0, turns[message.index], origin, Reader()))
        elif isinstance(message, Pulse):
            run.senders.hear(message)
    assert len(run.records) == 50
    found = verdicts(summarize(run))
    assert (found["client"], found["schedule"]) == ("bad", "bad")


def test_an_empty_answer_is_a_failure() -> None:
    run, _ = attack(Behaviour(every_empty=4, itl=0.001), replace(SMALL, requests=20, warmup=0))
    empty = [record for record in run.records if record.index % 4 == 3]
    assert {record.error for record in empty} == {"empty: the answer has no token"}
    assert {(record.status, record.finish_reason, record.done) for record in empty} == {(200, "length", True)}
    summary = summarize(run, [parse("ttft=9"), parse("e2e=9"), parse("tpot=9")])
    assert summary["counts"]["errors"] == {"empty": 5}
    assert [each["good"] for each in summary["slos"]] == [15, 15, 15]


def test_a_first_chunk_of_many_tokens_does_not_change_the_time_per_token() -> None:
    run, fake = attack(Behaviour(first=8, itl=0.01, ttft=0.01), replace(SMALL, rate=60, requests=20, warmup=0))
    summary = summarize(run)
    truth = [(s.wrote[-1] - s.wrote[0]) / 1e9 / (s.sent_tokens - 8) for s in fake.log]
    assert summary["latency"]["tpot"]["answered_only"]["p50"] == pytest.approx(float(np.median(truth)), abs=0.002)
    assert summary["chunks"]["first_chunk_mean"] == 8
    assert verdicts(summary)["chunks"] == "warn"


def test_a_tokenizer_counts_for_a_server_that_does_not() -> None:
    def words(passages: list[str]) -> list[int]:
        return np.cumsum([len(passage.split()) for passage in passages]).tolist()

    with running(Behaviour(usage=False, coalesce=3, itl=0.001)) as fake:
        target, calibration = prepare(Target(fake.url, "fake"))
        run = measure(replace(SMALL, requests=8, warmup=0), target, calibration, count=words)
    assert {record.output_tokens for record in run.records} == {15}
    assert {record.counted_by for record in run.records} == {"tokenizer"}
    assert summarize(run)["lengths"]["counted_by"] == "tokenizer"
    assert verdicts(summarize(run))["lengths"] == "warn"


def test_replicas_are_watched_to_the_end_of_a_run() -> None:
    run, _ = attack(Behaviour(replicas=(1, None, 2)), replace(SMALL, requests=10, warmup=0))
    assert run.replicas[0][1] == 1
    assert run.replicas[-1][0] >= max((record.end or 0) / 1e9 for record in run.records)
