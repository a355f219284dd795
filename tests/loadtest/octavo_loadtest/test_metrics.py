from __future__ import annotations

import math

import numpy as np
import pytest

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
