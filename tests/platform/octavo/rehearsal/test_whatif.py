"""What is predicted from a recording is what comes of the same requests on other settings."""

from __future__ import annotations

import dataclasses
import math

import pytest

from octavo.cost_model import Cost
from octavo.engine.recorded import Added
from octavo.errors import ConfigError
from octavo.recording import Recorder
from octavo.rehearsal.engine_replay import EngineReplay
from octavo.rehearsal.replay import read_recording
from octavo.rehearsal.traffic import read_traffic
from octavo.rehearsal.whatif import Measures, Rerun, Slo, changed, measures
from octavo.routing.router import RoutingConfig

SLO = Slo(ttft=0.2, itl=0.012)


def predicted(file, settings=None, shards: int = 1) -> Measures:
    traffic = read_traffic(file)
    return measures(Rerun(traffic, changed(traffic, settings or {}), RoutingConfig(), shards).outcome(), SLO)


def recorded(file) -> Measures:
    return measures(read_traffic(file).told, SLO)


def test_the_machine_is_found_from_its_steps(recording):
    (machine,) = read_traffic(recording).machines
    assert machine.pause == pytest.approx(0, abs=1e-6)
    assert machine.cost.step == pytest.approx(6.4e-3, rel=0.02)
    assert machine.cost.token == pytest.approx(30.3e-6, rel=0.05)
    assert isinstance(machine.cost, Cost)


@pytest.mark.parametrize("settings", [{}, {"max_num_seqs": 4}, {"target_itl": 0.009, "kv_cache_bytes": 4_000}])
def test_a_prediction_comes_true(record, settings):
    told, came = predicted(record(), settings), recorded(record(**settings))
    for share in (50, 90):
        assert told.ttft[share] == pytest.approx(came.ttft[share], rel=0.15)
        assert told.itl[share] == pytest.approx(came.itl[share], rel=0.15)
    assert told.output_tokens == pytest.approx(came.output_tokens, rel=0.05)
    assert told.good == pytest.approx(came.good, abs=0.05)


def test_more_shards_make_waits_shorter(record):
    file = record(max_num_seqs=2)
    one, three = predicted(file), predicted(file, shards=3)
    assert three.ttft[90] < one.ttft[90] / 3
    assert three.unserved == 0


def test_shards_that_die_and_come_do_so_again(recording):
    traffic = read_traffic(recording)
    middle = traffic.told[30].came
    first = dataclasses.replace(traffic.machines[0], until=middle)
    traffic.machines = [first, dataclasses.replace(first, name="second", since=middle + 0.2, until=math.inf)]
    outcome = Rerun(traffic, changed(traffic, {}), RoutingConfig(), None).outcome()
    assert [each.tokens for each in outcome] == [each.tokens for each in traffic.told]  # each token once
    paused = [each for each in outcome if max(each.gaps, default=0.0) > 0.2]
    assert 0 < len(paused) <= 8  # those that ran when it died


def test_what_moved_from_shard_to_shard_is_one_request(recording, tmp_path):
    """Cut in two: a request's first tokens are in a file that is read after the one with the others."""
    whole, frames = read_traffic(recording), list(read_recording(recording))
    folder = tmp_path / "moved"
    for name in ("b", "a"):
        (folder / name).mkdir(parents=True)
    first = Recorder(str(folder / "b"), "engine")
    for frame in frames[: len(frames) // 2]:
        first.write(frame)
    first.close()
    half = {each.added.request["request_id"]: each for each in read_traffic(folder).told}
    second = Recorder(str(folder / "a"), "engine")
    second.write(frames[0])
    replay = EngineReplay(frames[0], second.write)
    for each in half.values():
        if 0 < each.tokens[0] < each.added.request["params"]["max_tokens"]:
            moved = {**each.added.request, "emitted": [each.tokens[0]]}
            replay.apply(Added(frames[len(frames) // 2].time, moved, [each.chain], [], False, 0.0, []))
    second.close()
    told = {each.added.request["request_id"]: each for each in read_traffic(folder).told}
    assert {name: each.tokens for name, each in told.items()} == {name: each.tokens for name, each in half.items()}
    assert all(told[name].taken == each.taken for name, each in half.items())
    assert len(told) < len(whole.told)


def test_what_a_recording_does_not_hold_cannot_be_asked_for(record):
    traffic = read_traffic(record(enable_prefix_caching=False))
    with pytest.raises(ConfigError, match="block_size cannot be another"):
        changed(traffic, {"block_size": 8})
    with pytest.raises(ConfigError, match="has no block hashes"):
        changed(traffic, {"enable_prefix_caching": True})
    with pytest.raises(ConfigError, match="did you mean 'max_num_seqs'"):
        changed(traffic, {"max_num_seq": 8})
