from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import metrics
from octavo_loadtest.metrics import DEFINITIONS, derive
from octavo_loadtest.record import Chunk, Record

MS = 1_000_000


def record(index: int = 0, error: str | None = None, per_chunk: int = 1, counted: bool = True) -> Record:
    """Due at 100 ms, sent at 130; an empty chunk at 150, tokens at 200, 210, ... 240; the stream ends at 245."""
    chunks = [Chunk(150 * MS, "empty", 0, None)]
    counts = [(i + 1) * per_chunk if counted else None for i in range(5)]
    chunks += [Chunk((200 + 10 * i) * MS, "text", 4 * per_chunk, count) for i, count in enumerate(counts)]
    chunks += [Chunk(242 * MS, "empty", 0, None), Chunk(244 * MS, "usage", 0, None)]
    usage = {"prompt_tokens": 9, "completion_tokens": 5 * per_chunk, "prompt_tokens_details": {"cached_tokens": 4}}
    return Record(
        index, "s", 0, 0, 9, 5, 0, 100 * MS, 130 * MS, end=245 * MS, status=200, error=error, chunks=chunks,
        usage=usage, done=True, finish_reason="stop",
    )  # fmt: skip


# s=100, a=130, f=200 (with empty chunks 150), l=240 (with empty chunks 242), e=245 (all ms), n=5
EXPECTED = {
    "octavo": {"ttft": 100, "e2e": 145, "tpot": 40 / 4, "itl": 10, "normalized": 145 / 5},
    "vllm": {"ttft": 20, "e2e": 112, "tpot": (112 - 20) / 4, "itl": 10, "normalized": 112 / 5},
    "guidellm": {"ttft": 70, "e2e": 115, "tpot": 110 / 5, "itl": 10, "normalized": 115 / 5},
    "aiperf": {"ttft": 70, "e2e": 110, "tpot": 40 / 4, "itl": 10, "normalized": 110 / 5},
    "mlperf": {"ttft": 100, "e2e": 145, "tpot": (145 - 100) / 4, "itl": 10, "normalized": 145 / 5},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_definitions(name: str) -> None:
    measured = derive([record()], DEFINITIONS[name]).headline()
    for key, milliseconds in EXPECTED[name].items():
        assert measured[key][0] * 1e3 == pytest.approx(milliseconds), key


def test_every_latency_has_both_origins() -> None:
    latency = derive([record()], DEFINITIONS["octavo"]).latency
    assert latency["from_schedule"]["ttft"][0] - latency["from_sent"]["ttft"][0] == pytest.approx(0.030)
    assert latency["from_schedule"]["tpot"][0] == latency["from_sent"]["tpot"][0]


def test_a_failure_is_infinite() -> None:
    measures = derive([record(), record(1, error="truncated: ...")], DEFINITIONS["octavo"])
    assert all(math.isinf(values[1]) for values in measures.headline().values())
    assert len(measures.gaps) == 4


def test_tokens_of_a_chunk() -> None:
    assert [n for _, n in metrics.tokens_of_chunks(record(per_chunk=3))] == [3] * 5
    assert [n for _, n in metrics.tokens_of_chunks(record(per_chunk=3, counted=False))] == [3] * 5
    times, tokens = metrics.token_times([record(per_chunk=2)])
    assert times[0] == pytest.approx(0.2)
    assert tokens.sum() == 10


def test_one_token_has_no_time_per_token() -> None:
    short = record()
    short.chunks = short.chunks[:2]
    short.usage = {"completion_tokens": 1}
    measured = derive([short], DEFINITIONS["octavo"]).headline()
    assert math.isnan(measured["tpot"][0])
    assert measured["ttft"][0] == pytest.approx(0.1)


def test_in_flight_counts() -> None:
    times, level = metrics.in_flight(np.array([0.0, 1.0, 2.0]), np.array([1.5, 3.0, 2.5]))
    assert times.tolist() == [0.0, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert level.tolist() == [1, 2, 1, 2, 1, 0]


def test_the_steady_window_has_no_ramp_and_no_drain() -> None:
    records = []
    for i in range(101):
        one = record(i)
        one.sent = one.scheduled = i * 100 * MS
        one.end = one.sent + 1000 * MS
        records.append(one)
    assert metrics.steady_window(derive(records, DEFINITIONS["octavo"])) == pytest.approx((1.0, 10.0))


def test_a_burst_has_no_steady_window() -> None:
    records = [record(0), record(1)]
    assert metrics.steady_window(derive(records, DEFINITIONS["octavo"])) == pytest.approx((0.13, 0.245))


# ---- chunks with several tokens -----------------------------------------------------------------------------------


def stream(sizes: list[int], counted: bool = True, itl: int = 50, first: int = 200, usage: bool = True) -> Record:
    """Tokens every `itl` ms from `first` on, in chunks of these sizes: each is sent when its last token is there."""
    chunks, total = [], 0
    for size in sizes:
        total += size
        at = first + itl * (total - sizes[0])
        chunks.append(Chunk(at * MS, "text", 4 * size, total if counted else None))
    return Record(
        0, "s", 0, 0, 9, total, 0, 100 * MS, 100 * MS, end=chunks[-1].at, status=200, chunks=chunks,
        usage={"completion_tokens": total} if usage else None, done=True, finish_reason="stop",
    )  # fmt: skip


def tpot(one: Record, name: str = "octavo") -> float:
    return float(derive([one], DEFINITIONS[name]).headline()["tpot"][0]) * 1e3


SIZES = [[1] * 20, [10] + [1] * 10, [10, 10], [1, 19], [4] * 5, [7, 1, 5, 7]]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_time_per_token_is_right_however_chunks_coalesce(sizes: list[int], counted: bool) -> None:
    """The first chunk's tokens are out: with ten of twenty in it, (l-f)/(n-1) says 26.3 ms where a token takes 50."""
    assert tpot(stream(sizes, counted)) == pytest.approx(50)


def test_other_tools_definitions_stay_theirs() -> None:
    assert tpot(stream([10] + [1] * 10), "vllm") == pytest.approx(500 / 19)
    assert derive([stream([10, 10])], DEFINITIONS["guidellm"]).headline()["itl"][0] * 1e3 == pytest.approx(500 / 19)


def test_an_answer_in_one_chunk_has_no_time_per_token() -> None:
    assert math.isnan(tpot(stream([20])))
    assert math.isnan(tpot(stream([20], counted=False)))


def test_uncounted_chunks_have_a_token_each_where_there_are_about_as_many() -> None:
    """The end token shows in no chunk: characters would give long words more tokens than they have."""
    one = stream([1] * 19, counted=False, usage=False)
    one.usage = {"completion_tokens": 20}
    one.chunks[3] = one.chunks[3]._replace(characters=40)
    assert [round(n, 3) for _, n in metrics.tokens_of_chunks(one)] == [round(20 / 19, 3)] * 19


@pytest.mark.parametrize("counts", [[0, 1, 2], [3, 2, 5], [None, 1, 2]])
def test_counts_that_make_no_sense_are_not_believed(counts: list[int | None]) -> None:
    one = stream([1, 1, 1])
    one.chunks = [chunk._replace(completion_tokens=n) for chunk, n in zip(one.chunks, counts, strict=True)]
    assert [n for _, n in metrics.tokens_of_chunks(one)] == [1, 1, 1]


def test_gaps_between_tokens_deal_each_wait_to_the_tokens_that_it_brought() -> None:
    measures = derive([stream([1, 4, 5])], DEFINITIONS["octavo"])
    assert (measures.gaps * 1e3).round().tolist() == [200, 250]
    assert (measures.token_gaps * 1e3).round().tolist() == [50] * 9


def test_gaps_of_failed_requests_are_left_out() -> None:
    bad = stream([1, 1, 1])
    bad.error = "broken"
    measures = derive([bad], DEFINITIONS["octavo"])
    assert (len(measures.gaps), len(measures.token_gaps)) == (0, 0)


def test_reasoning_ends_the_first_token_and_not_the_visible_one() -> None:
    one = stream([1, 1, 1])
    one.chunks[0] = one.chunks[0]._replace(kind="reasoning")
    found = derive([one], DEFINITIONS["octavo"]).headline()
    assert (found["ttft"][0], found["visible"][0]) == pytest.approx((0.1, 0.15))


# ---- what was never sent ------------------------------------------------------------------------------------------


def unsent(due: int) -> Record:
    return Record(7, "u", 0, -1, 9, 5, 0, due * MS, None, error="unsent: it was still waiting when the run was over")


def test_what_was_never_sent_is_infinite_and_late_without_end() -> None:
    measures = derive([record(), unsent(120)], DEFINITIONS["octavo"])
    assert all(math.isinf(values[1]) for origin in measures.latency.values() for values in origin.values())
    assert measures.late.tolist() == [pytest.approx(0.03), math.inf]
    assert measures.span == pytest.approx((0.13, 0.245))
    assert metrics.in_flight(measures.sent, measures.end)[1].tolist() == [1, 0]
    assert metrics.steady_window(measures) == pytest.approx((0.13, 0.245))


def test_a_run_of_which_nothing_was_sent() -> None:
    measures = derive([unsent(100), unsent(300)], DEFINITIONS["octavo"])
    assert measures.span == pytest.approx((0.1, 0.3))
    assert metrics.steady_window(measures) == pytest.approx((0.1, 0.3))
    assert len(metrics.in_flight(measures.sent, measures.end)[0]) == 0


def test_requests_in_the_order_in_which_they_were_due() -> None:
    records = [record(i) for i in range(3)]
    for one, due in zip(records, (3, 1, 2), strict=True):
        one.scheduled = due
    assert derive(records, DEFINITIONS["octavo"]).order.tolist() == [1, 2, 0]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 200))
def test_every_definition_is_finite_and_ordered(sizes: list[int], itl: int) -> None:
    """Whatever chunks hold: E2E is no shorter than TTFT, and a server with one pace has that time per token."""
    one = stream(sizes, itl=itl)
    for name, definition in DEFINITIONS.items():
        found = derive([one], definition).headline()
        assert 0 < found["ttft"][0] <= found["e2e"][0], name
        assert found["normalized"][0] * one.output_tokens == pytest.approx(found["e2e"][0])
    assert tpot(one) == pytest.approx(itl)
