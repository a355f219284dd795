"""When requests are sent, and what is made of it, in simulated time: figures are exact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo_loadtest.client import Broken
from octavo_loadtest.job import Session, Target, Turn
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.metrics import DEFINITIONS, derive, in_flight
from octavo_loadtest.sender import encode
from octavo_loadtest.slo import parse
from octavo_loadtest.summary import summarize

OPEN = Load(workload="balanced", scale=0.02, arrivals="constant", rate=10, requests=200, warmup=0)  # 10 tokens out
CLOSED = replace(OPEN, arrivals="closed", concurrency=4)
Simulate = Callable[..., tuple[Run, Any]]


def latency(run: Run, key: str = "ttft", origin: str = "from_schedule") -> Any:
    return derive(run.records, DEFINITIONS["octavo"]).latency[origin][key]


def errors(run: Run) -> Counter[str]:
    return Counter((record.error or "fine").split(":")[0] for record in run.records)


def most_at_once(run: Run) -> float:
    """Where one begins in the same nanosecond in which another ends, it begins after it."""
    sent, end = (np.array([getattr(record, key) for record in run.records]) for key in ("sent", "end"))
    return float(in_flight(sent / 1e9, (end - 1) / 1e9)[1].max())


# ---- open loops ---------------------------------------------------------------------------------------------------


def test_a_server_with_room_is_measured_as_it_is(simulated: Simulate) -> None:
    run, _ = simulated(OPEN, ttft=0.05, itl=0.01)
    assert latency(run) == pytest.approx(0.05, abs=1e-6)
    assert latency(run, "tpot") == pytest.approx(0.01, abs=1e-6)
    assert latency(run, "e2e") == pytest.approx(0.05 + 9 * 0.01, abs=1e-6)
    assert max((record.sent or 0) - record.scheduled for record in run.records) < 1000  # ns


def test_a_slow_server_does_not_slow_the_load(simulated: Simulate) -> None:
    """Twice what it can serve: the client sends by its plan, and the queue is the server's."""
    run, _ = simulated(replace(OPEN, requests=100, drain=600), ttft=0.11, itl=0.01, slots=1)
    sent = np.array([record.sent for record in run.records])
    assert np.diff(sent) == pytest.approx(0.1 * 1e9, rel=1e-4)
    assert latency(run)[-1] == pytest.approx(99 * (0.2 - 0.1) + 0.11, abs=1e-3)
    summary = summarize(run, [parse("ttft=0.5")])
    assert summary["saturation"]["rising"]
    assert summary["slos"][0]["good"] == 4  # the wait grows by 0.1 s with each
    assert summary["throughput"]["steady"]["requests_per_s"] == pytest.approx(5, rel=0.05)
    assert summary["offered"]["requests_per_s"] == pytest.approx(10)


def test_a_stall_is_charged_to_all_that_were_due_in_it(simulated: Simulate) -> None:
    """One request of 200 takes ten seconds, and no other may be in flight: from the send that is one slow request, from
    the schedule every second. This is what coordinated omission hides."""
    load = replace(OPEN, concurrency=1, drain=600)
    run, _ = simulated(load, ttft=0.01, itl=0.0, slow=lambda number: 10.0 if number == 49 else 0.0)
    assert (latency(run, origin="from_sent") > 1).sum() == 1
    waited = latency(run) > 1
    assert waited.sum() == pytest.approx(100, abs=2)
    assert waited[49:140].all()
    summary = summarize(run, [parse("ttft=1")])
    assert summary["slos"][0]["share"] == pytest.approx(0.5, abs=0.02)
    assert summary["slos"][0]["worth"] < 20  # one stall is nearly one observation, whatever number of requests it hits


def test_what_a_stall_keeps_from_being_sent_counts_too(simulated: Simulate) -> None:
    """The same with a stall that outlasts the run: 151 requests were due and never sent."""
    load = replace(OPEN, concurrency=1, drain=5)
    run, server = simulated(load, ttft=0.01, itl=0.0, slow=lambda number: 1e6 if number == 49 else 0.0)
    assert len(server.asked) == 50
    assert errors(run) == {"fine": 49, "unfinished": 1, "unsent": 150}
    summary = summarize(run, [parse("ttft=1")])
    assert summary["slos"][0]["share"] == pytest.approx(49 / 200)
    assert summary["latency"]["ttft"]["headline"]["p50"] == np.inf
    assert summary["latency"]["ttft"]["answered_only"]["p90"] == pytest.approx(
        0.01, abs=1e-4
    )  # what used to be printed


def test_a_cap_holds_and_its_wait_is_charged(simulated: Simulate) -> None:
    run, _ = simulated(replace(OPEN, concurrency=2, requests=40, drain=600), ttft=0.4, itl=0.0)
    assert most_at_once(run) == 2
    assert latency(run, origin="from_sent") == pytest.approx(0.4, abs=1e-6)
    assert latency(run)[-1] == pytest.approx(0.4 + 39 * 0.1 - 0.1, abs=0.11)


def test_the_drain_ends_what_does_not_end(simulated: Simulate) -> None:
    run, _ = simulated(replace(OPEN, requests=20, drain=1.0), ttft=100.0, itl=0.0)
    assert errors(run) == {"unfinished": 20}
    assert run.senders.ended == pytest.approx((19 * 0.1 + 1.0) * 1e9, rel=1e-3)


def test_a_time_limit_is_of_each_request(simulated: Simulate) -> None:
    run, _ = simulated(replace(OPEN, requests=20, drain=3000), ttft=0.0, itl=0.0, slow=lambda n: 700.0 * (n == 3))
    assert errors(run) == {"fine": 19, "timeout": 1}
    assert run.records[3].error == "timeout: no whole answer after 600 s"


def test_an_interrupted_run_keeps_what_it_knows(simulated: Simulate) -> None:
    """Stopped after five seconds: what was sent just before is cut and dropped, what had waited for long is kept."""
    run, _ = simulated(OPEN, stop_at=5.05, ttft=0.1, itl=0.0, slow=lambda number: 1e6 if number == 10 else 0.0)
    assert errors(run) == {"fine": 49, "unfinished": 1}
    assert run.records[10].error == "unfinished: the run was over"


# ---- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Broken("connection closed before the answer's end"), "broken: connection closed"),
        (ConnectionRefusedError("nobody there"), "connect: nobody there"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "stream: out of memory"),
        (b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n', "truncated: the stream ended without a finish_"),
        (b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n', "empty: the answer has"),
        (b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "abort"}]}\n\n', "stream: finish_reason ab"),
        (b"", "truncated"),
        (b"<html>proxy</html>", "truncated"),
    ],
)
def test_what_is_no_answer_is_a_failure_under_its_name(
    wrong: Exception | bytes, said: str, simulated: Simulate
) -> None:
    run, server = simulated(
        replace(OPEN, requests=10), ttft=0.01, itl=0.0, fault=lambda number: wrong if number == 4 else None
    )
    assert (run.records[4].error or "").startswith(said)
    assert [record.index for record in run.records if not record.ok] == [4]
    assert len(server.asked) == 10  # nothing is tried again
    slos = summarize(run, [parse("ttft=9"), parse("tpot=9"), parse("itl=9"), parse("e2e=9")])["slos"]
    assert [each["good"] for each in slos] == [9, 9, 9, 9]


# ---- closed loops -------------------------------------------------------------------------------------------------


def test_a_closed_loop_keeps_its_number_at_once(simulated: Simulate) -> None:
    run, _ = simulated(CLOSED, ttft=0.09, itl=0.0)
    assert most_at_once(run) == 4
    assert max(record.end or 0 for record in run.records) / 1e9 == pytest.approx(200 / 4 * 0.09, rel=1e-3)
    assert latency(run) == pytest.approx(
        latency(run, origin="from_sent"), abs=1e-6
    )  # there is no schedule to be late for


def test_a_closed_loop_ends_with_its_time(simulated: Simulate) -> None:
    run, _ = simulated(replace(CLOSED, requests=500, duration=2.0), ttft=0.1, itl=0.0)
    assert len(run.records) == pytest.approx(4 * 20, abs=4)
    assert errors(run) == {"fine": len(run.records)}  # what had not begun was not due


def test_batches_wait_for_each_other(simulated: Simulate) -> None:
    load = replace(OPEN, arrivals="batch:size=5", requests=20)
    run, _ = simulated(load, ttft=0.1, itl=0.0, slow=lambda number: 0.3 * (number % 5 == 0))
    due = sorted({record.scheduled for record in run.records})
    assert np.diff(due) == pytest.approx(0.4 * 1e9, rel=1e-3)
    assert Counter(record.scheduled for record in run.records) == dict.fromkeys(due, 5)


# ---- conversations ------------------------------------------------------------------------------------------------


def talk(name: str, turns: int, at: float = 0.0, think: float = 0.0, first: int = 0) -> Session:
    made = (Turn(first + i, f"question {i}", 2, think if i else 0.0, 9) for i in range(turns))
    return Session(name, at, tuple(made))


def test_a_turn_follows_the_answer_and_the_thought(simulated: Simulate) -> None:
    run, server = simulated(OPEN, [talk("a", 3, think=2.0)], ttft=0.5, itl=0.1)
    assert [record.scheduled / 1e9 for record in run.records] == pytest.approx([0.0, 2.6, 5.2], abs=1e-3)
    assert [len(asked["messages"]) for asked in server.asked] == [1, 3, 5]
    assert server.asked[2]["messages"][1] == {"role": "assistant", "content": " word word"}
    assert latency(run) == pytest.approx(0.5, abs=1e-6)


def test_turns_behind_a_failure_are_due_and_not_sent(simulated: Simulate) -> None:
    broken = Broken("gone")
    run, server = simulated(
        OPEN,
        [talk("a", 3), talk("b", 2, at=1.0, first=3)],
        ttft=0.1,
        itl=0.0,
        fault=lambda n: broken if n == 1 else None,
    )
    assert len(server.asked) == 4
    assert [(record.session, record.turn) for record in sorted(run.records, key=lambda r: r.index)] == [
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1),
    ]  # fmt: skip
    assert errors(run) == {"fine": 3, "broken": 1, "unsent": 1}


def test_a_user_who_is_still_thinking_at_the_end_was_not_let_down(simulated: Simulate) -> None:
    run, _ = simulated(replace(OPEN, drain=3.0), [talk("a", 2, think=100.0)], ttft=0.1, itl=0.0)
    assert errors(run) == {"fine": 1}


# ---- a sender on itself -------------------------------------------------------------------------------------------


def test_a_sender_says_how_it_is(simulated: Simulate) -> None:
    run, _ = simulated(replace(OPEN, requests=50), ttft=0.01, itl=0.0)
    assert (run.senders.sent, run.senders.finished) == ({0: 50}, {0: 50})
    assert len(run.senders.lags) == pytest.approx(49 * 0.1 / 0.02, abs=3)
    assert max(run.senders.lags) < 1e-6  # time stands still while it works
    assert len(run.senders.cpu_shares) == 1


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ("completions", {"prompt": "a\nb"}),
    ],
)
def test_bodies(api: str, body: dict[str, Any]) -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = json.loads(encode(Target("http://x", "m", api, body={"temperature": 0}), history, 7))
    assert found == {"model": "m", "max_tokens": 7, "stream": True, "temperature": 0, **body}


def test_a_text_to_embed_has_no_length_to_ask_for() -> None:
    found = json.loads(encode(Target("http://x", "m", "embeddings"), [{"role": "user", "content": "a"}], 7))
    assert found == {"model": "m", "input": "a", "encoding_format": "base64"}


def test_what_was_asked_for_goes_before_what_is_usual() -> None:
    found = json.loads(encode(Target("http://x", "m", body={"stream": False, "model": "n"}), [], 7))
    assert (found["stream"], found["model"]) == (False, "n")


TALKS = st.lists(
    st.tuples(st.integers(0, 20), st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    talks=TALKS,
    closed=st.booleans(),
    at_once=st.integers(0, 3),
    slots=st.integers(1, 4),
    faults=st.sets(st.integers(0, 12)),
)
def test_whatever_is_planned_everything_has_one_record(
    talks: list[tuple[int, list[tuple[int, int]]]],
    closed: bool,
    at_once: int,
    slots: int,
    faults: set[int],
    simulated: Simulate,
) -> None:
    """Each turn of each session, in its order, when it was due; and the server has seen those that were sent."""
    numbers = iter(range(1000))
    sessions = [
        Session(f"s{i}", float(at), tuple(Turn(next(numbers), "Hi", tokens, float(think)) for tokens, think in turns))
        for i, (at, turns) in enumerate(sorted(talks, key=lambda talk: talk[0]))
    ]
    load = replace(CLOSED if closed else OPEN, concurrency=max(at_once, closed), requests=1000, drain=10_000)
    fault = lambda number: Broken("gone") if number in faults else None  # noqa: E731
    run, server = simulated(load, sessions=sessions, ttft=1.0, itl=0.5, slots=slots, fault=fault)
    assert [record.index for record in run.records] == list(range(next(numbers)))
    sent = [record for record in run.records if record.sent is not None]
    assert len(sent) == len(server.asked)
    if load.concurrency and sent:
        assert most_at_once(replace_records(run, sent)) <= load.concurrency
    for session in sessions:
        told = [record for record in run.records if record.session == session.name]
        assert [record.turn for record in told] == list(range(len(session.turns)))
        if not closed:
            assert told[0].scheduled == session.at * 1e9
        for turn, before, after in zip(session.turns[1:], told, told[1:], strict=False):
            if before.ok:
                assert after.scheduled >= (before.end or 0) + turn.think * 1e9 - 1000
                assert after.sent is not None
            else:
                assert (after.sent, after.ok) == (None, False)  # its user has left
    for record in sent:
        assert record.ok or "gone" in (record.error or "")
        assert record.scheduled <= (record.sent or 0) <= (record.end or 0)


def replace_records(run: Run, records: list[Any]) -> Run:
    return Run(**{name: getattr(run, name) for name in Run.__slots__} | {"records": records})
