"""Embeddings, against a server that knows when it wrote each answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo_loadtest import report, store
from octavo_loadtest.campaign import Judging, summary_of
from octavo_loadtest.fake_server import Behaviour, FakeServer, running
from octavo_loadtest.figures import point
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run, measure
from octavo_loadtest.metrics import DEFINITIONS, derive
from octavo_loadtest.server import prepare
from octavo_loadtest.slo import parse
from octavo_loadtest.sse import parse_embeddings


@pytest.fixture(scope="module")
def attacked() -> tuple[Run, FakeServer]:
    with running(Behaviour(ttft=0.01, every_reject=20)) as fake:
        target, calibration = prepare(Target(fake.url, "fake", "embeddings"))
        assert calibration.measured
        assert target.body == {}  # nothing is asked for that only text has
        return measure(Load(workload="embed-mixed", rate=120, requests=100, warmup=1), target, calibration), fake


def test_latencies_are_the_servers(attacked: tuple[Run, FakeServer]) -> None:
    run, fake = attacked
    wrote = {served.name: (served.wrote[0] - served.received) / 1e9 for served in fake.log}
    measures = derive(run.records, DEFINITIONS["octavo"])
    off = [
        measures.latency["from_sent"]["e2e"][i] - wrote[f"load-{record.index}"]
        for i, record in enumerate(run.records)
        if record.ok
    ]
    assert len(off) == 95
    assert min(off) > 0
    assert np.median(off) < 0.01


def test_a_summary_tells_lengths_apart_and_knows_no_tokens(attacked: tuple[Run, FakeServer]) -> None:
    run, _ = attacked
    summary = summary_of(run, Judging([parse("e2e=9")]))
    by_length = {row["tokens"]: row for row in summary["by_length"]}
    assert list(by_length) == ["1 to 32", "33 to 128", "129 to 512"]
    assert sum(row["sent"] for row in by_length.values()) == 100
    assert sum(row["failed"] for row in by_length.values()) == summary["counts"]["failed"] == 5
    assert all(row["p50_s"] >= 0.01 and row["p99_s"] is None for row in by_length.values())  # too few for a p99
    assert summary["slos"][0]["good"] == 95
    assert np.isnan(summary["throughput"]["steady"]["output_tokens_per_s"])
    assert {verdict["name"] for verdict in summary["verdicts"]}.isdisjoint({"chunks", "prefix cache"})


def test_reports_show_the_lengths(attacked: tuple[Run, FakeServer], tmp_path: Path) -> None:
    summary = store.plain(summary_of(attacked[0], Judging()))
    document = {"kind": "load", "name": "texts", "points": [store.plain(point("one", 120.0, [summary]))]}
    report.write(tmp_path, document)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "33 to 128" in text
        assert "TTFT p50" not in text


def test_an_answer_without_vectors_is_a_failure() -> None:
    for body in (b"{}", b'{"data": []}', b"[]", b"no JSON", b'{"data": [{"embedding": []}]}'):
        assert "no embeddings" in str(parse_embeddings([(1, body)]).error)
    assert parse_embeddings([(1, b'{"data": [{"em'), (2, b'bedding": "AACAPw=="}]}')]).error is None
