"""Sweeps and the search for a capacity, against a server whose capacity is known."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from octavo_loadtest.campaign import Campaign, Judging
from octavo_loadtest.fake_server import Behaviour, running
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.server import prepare
from octavo_loadtest.slo import parse

# one slot, 20 ms to the first token and 10 ms for the other five: 33 requests/s at most
SLOW = Behaviour(ttft=0.02, itl=0.002, slots=1)
LOAD = Load(scale=0.012, rate=20, requests=24, arrivals="constant", warmup=0)


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[Campaign]:
    with running(SLOW) as fake:
        target, calibration = prepare(Target(fake.url, "fake"))
        judging = Judging([parse("ttft=0.15")], attainment=0.7)
        yield Campaign(target, calibration, judging, tmp_path, Console(file=io.StringIO()))


def test_a_rate_sweep_finds_the_saturation(campaign: Campaign, tmp_path: Path) -> None:
    document = campaign.rates("rates", LOAD, [12, 60, 90], None, 0.02)
    found = document["saturation"]
    assert found["last_rate_kept"] == 12
    assert 60 < found["peak_output_tokens_per_s"] < 6 * 34
    assert document["points"][1]["figures"]["ttft_p50"][0] > 100  # the queue grew
    assert document["points"][1]["runs"][0]["saturation"]["rising"]
    assert (tmp_path / "12-s-1" / "records.jsonl").exists()


def test_a_closed_sweep_stops_when_throughput_does_not_rise(campaign: Campaign) -> None:
    document = campaign.concurrencies("levels", LOAD, [1, 2, 4, 8, 16], None, 0.3)
    assert "stopped rising" in document["stopped"]
    assert len(document["points"]) <= 3


def test_capacity_is_bracketed(campaign: Campaign) -> None:
    document = campaign.capacity("capacity", LOAD, 1.0, 3)
    found = document["capacity"]
    assert found["low"] is None or 5 <= found["low"] < 60
    assert found["high"] is not None  # 24 requests at 80/s are late by 0.15 s before a third of them is through
    assert document["points"][0]["value"] == 20
