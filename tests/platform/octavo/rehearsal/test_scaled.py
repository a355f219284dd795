"""Recorded traffic under the real autoscaler, in simulated time."""

from __future__ import annotations

import dataclasses
import json

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from octavo.errors import ConfigError
from octavo.recording import Recorder
from octavo.rehearsal.command import replay
from octavo.rehearsal.scaled import ScaledRerun, scaling_of
from octavo.rehearsal.traffic import read_scaler, read_traffic
from octavo.rehearsal.whatif import changed
from octavo.routing.router import RoutingConfig
from octavo.scaling.policy import ScalingState, Targets
from octavo.scaling.recorded import Begun, Scaled, Seen


def rerun(traffic, least, most, **settings):
    scaling = scaling_of(traffic, least, most, {"start_seconds": 0.5} | settings)
    return ScaledRerun(traffic, changed(traffic, {"max_num_seqs": 2}), RoutingConfig(), scaling)


@pytest.fixture
def traffic(recording):
    """Some seconds of talks, and one request two minutes later."""
    traffic = read_traffic(recording)
    last = traffic.told[-1]
    added = msgspec.structs.replace(last.added, request=last.added.request | {"request_id": "late"})
    traffic.told.append(dataclasses.replace(last, came=last.came + 120, added=added))
    return traffic


@pytest.mark.parametrize("least", [0, 1])
def test_shards_come_for_a_load_and_go_with_it(traffic, least):
    run, seen = rerun(traffic, least, 4, down_after=5, zero_after=20), []
    for when in (2.0, 100.0):
        run.at(when, lambda: seen.append((run.asked, len(run.shards))))
    told = run.outcome()
    assert seen[0][0] > 1
    assert seen[1] == (least, least)
    assert all(each.tokens for each in told), "also the one that found no shard"
    assert 0 < run.shards_on_average() < 1.5


def test_what_is_not_wanted_any_more_ends_what_it_has(traffic):
    run = rerun(traffic, 1, 4, down_after=0.2)
    told = run.outcome()
    assert [sum(each.tokens.values()) for each in told] == [sum(each.tokens.values()) for each in traffic.told]
    assert max(gap for each in told for gap in each.gaps) < 0.2, "nothing moved"


def scaled(recording, *asked: tuple[float, int]) -> None:
    """Record decisions beside an engine's: times, and shards that were asked for by then."""
    recorder = Recorder(str(recording.parent), "scaler")
    recorder.write(Begun("m", 0.0))
    for at, target in asked:
        seen = Seen(shards=[], now=at, running=1, target=target, held=0.0, targets=Targets(utilization=0.5))
        recorder.write(Scaled(seen, target, "load", 1.0, ScalingState()))
    recorder.close()


def test_the_autoscaler_goes_by_what_was_recorded(recording):
    scaled(recording, (10.0, 1), (11.0, 3), (12.0, 3), (20.0, 4))
    traffic = read_traffic(recording.parent)
    assert (traffic.targets.utilization, traffic.starts) == (0.5, [])
    files = {file.name.partition("-")[0]: file for file in recording.parent.glob("*.rec")}
    traffic.machines = [
        dataclasses.replace(traffic.machines[0], since=since) for since in (0.0, 13.5, 12.5, 15.0, 22.0)
    ]
    read_scaler(files["scaler"], traffic)
    assert traffic.starts == [1.5, 2.5, 2.0], "one is there before any is asked for, and one replaces another"
    traffic.starts = []
    with pytest.raises(ConfigError, match="start_seconds=SECONDS"):
        scaling_of(traffic, 1, 2, {})
    assert scaling_of(traffic, 0, 2, {"start_seconds": 3, "ttft": 2}) == (
        0, 2, Targets(utilization=0.5, ttft=2), 3.0,
    )  # fmt: skip
    for settings, said in (
        ({"utilisation": 1}, "utilization"),
        ({"ttft": -1}, "ttft"),
        ({"utilization": 0}, "above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            scaling_of(traffic, 1, 2, settings)


def test_a_range_of_shards_is_asked_for_as_it_is_typed(recording):
    app = typer.Typer()
    app.command()(replay)

    def octavo(*words):
        return CliRunner().invoke(app, [str(recording), "--json", *words])

    done = octavo("--shards", "1-3", "--set", "start_seconds=0.2", "--set", "down_after=1", "--set", "max_num_seqs=4")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert 1 <= found["what if"]["shards"] <= 3
    assert found["recorded"]["shards"] is None
    assert json.loads(octavo("--shards", "2").output)["what if"]["shards"] == 2
    for words, said in (
        (["--shards", "0"], "a range such as 2-8"),
        (["--shards", "3-2"], "a range such as 2-8"),
        (["--shards", "-1"], "a range such as 2-8"),
        (["--shards", "1-2-3"], "a range such as 2-8"),
        (["--set", "utilization=0.5"], "by --shards MIN-MAX"),
        (["--set", "ttft=["], "no YAML"),
        (["--shards", "2", "--set", "start_seconds=1"], "by --shards MIN-MAX"),
    ):
        refused = octavo(*words)
        assert (refused.exit_code, said in refused.output) == (2, True), refused.output
