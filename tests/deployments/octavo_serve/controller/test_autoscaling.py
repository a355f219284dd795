from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from octavo.recording import find_recordings
from octavo.rehearsal.replay import replay_file
from octavo.scaling.policy import ShardLoad
from octavo_serve.controller.autoscaling import POLICY, Autoscaler, loads

DEPLOYMENT = DeploymentID("shard-m", "octavo")
BUSY = ShardLoad(
    seconds_arriving=0.3, seconds_waiting=0.0, sequences=20.0, arrivals=5.0, seconds_each=3.0, capacity=10.0,
    kv_use=0.4, first_token=0.1,
)  # fmt: skip
NOW = 1000.0


def context(reports: dict[str, ShardLoad | None], **changes: Any) -> AutoscalingContext:
    """What Serve's controller would hand over after these replicas reported at `NOW` minus their age."""
    ids = {name: ReplicaID(name, DEPLOYMENT) for name in reports}
    metrics: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = {}
    for name, load in reports.items():
        for key, value in dataclasses.asdict(load).items() if load else ():
            point = TimeStampedValue(NOW - load.age, value)
            metrics.setdefault(key, {})[ids[name]] = [TimeStampedValue(NOW - 60, 0.0), point]
    metrics.pop("age", None)
    arguments: dict[str, Any] = {
        "deployment_id": DEPLOYMENT, "deployment_name": DEPLOYMENT.name, "app_name": DEPLOYMENT.app_name,
        "current_num_replicas": len(ids), "target_num_replicas": len(ids), "running_replicas": list(ids.values()),
        "total_num_requests": 0, "total_queued_requests": 0, "aggregated_metrics": None, "raw_metrics": metrics,
        "capacity_adjusted_min_replicas": 0, "capacity_adjusted_max_replicas": 8, "policy_state": {},
        "last_scale_up_time": None, "last_scale_down_time": None, "current_time": NOW, "config": None,
    }  # fmt: skip
    return AutoscalingContext(**(arguments | changes))


def test_the_latest_report_of_each_shard() -> None:
    found = loads(context({"a": BUSY, "b": dataclasses.replace(BUSY, age=3.0), "new": None}))
    assert found == [BUSY, dataclasses.replace(BUSY, age=3.0)]


def test_no_reports_no_loads() -> None:
    assert loads(context({"new": None})) == []
    assert loads(context({}, raw_metrics=None)) == []


def test_the_policy_decides_and_remembers() -> None:
    policy = Autoscaler(utilization=0.5, down_after=10.0)
    wanted, state = policy(context({"a": BUSY}))
    assert wanted == 5  # (0.3 + 20 / 10) / 0.5
    idle = dataclasses.replace(BUSY, seconds_arriving=0.0, sequences=2.0, arrivals=0.0, kv_use=0.0)
    later = {"target_num_replicas": 5, "policy_state": state}
    assert policy(context({"a": idle}, **later, current_time=NOW + 4))[0] == 5
    assert policy(context({"a": idle}, **later, current_time=NOW + 4.9))[0] == 5


def test_decisions_are_recorded_and_taken_again(tmp_path: Path) -> None:
    policy, state = Autoscaler(record=str(tmp_path)), dict[str, Any]()
    for second in range(5):
        shards = {"target_num_replicas": 4, "policy_state": state, "current_time": NOW + second}
        _, state = policy(context({"a": BUSY}, **shards))
    assert policy.recorder is not None
    policy.recorder.close()
    (file,) = find_recordings(tmp_path / "shard-m")
    found = replay_file(file)
    assert (found.frames["Scaled"], found.difference) == (5, None)


def test_where_nothing_can_be_recorded_shards_are_scaled_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Autoscaler(record=str(tmp_path / "file"))(context({}, total_queued_requests=2))[0] == 1


def test_requests_that_wait_for_a_shard_bring_one() -> None:
    assert Autoscaler()(context({}, total_queued_requests=2))[0] == 1
    assert Autoscaler()(context({}))[0] == 0


def test_zero_after_does_not_hasten_a_model_that_keeps_a_shard() -> None:
    idle = dataclasses.replace(BUSY, seconds_arriving=0.0, sequences=0.0, arrivals=0.0, kv_use=0.0)
    for lowest, shards in {0: 0, 1: 4}.items():
        policy, state = Autoscaler(zero_after=2.0), dict[str, Any]()
        for second in (0, 3):
            bounds = {"capacity_adjusted_min_replicas": lowest, "target_num_replicas": 4, "policy_state": state}
            found, state = policy(context({"a": idle}, **bounds, current_time=NOW + second))
        assert found == shards


def test_a_burst_leaves_room_for_what_others_are_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = {"bundle": {"GPU": 1.0}, "ranks": 1, "strategy": "STRICT_PACK"}
    busy = dataclasses.replace(BUSY, sequences=99.0)
    found = {}
    for case, nodes in {"nobody knows": None, "four GPUs": [{"GPU": 4.0}], "a node is gone": []}.items():
        policy = Autoscaler(group=shard, kept=[shard])
        monkeypatch.setattr(policy.nodes, "latest", lambda now, nodes=nodes: nodes)
        found[case] = policy(context({"a": busy}))[0]
    assert found == {"nobody knows": 13, "four GPUs": 3, "a node is gone": 0}  # Serve takes the minimum for less


def test_serve_takes_the_policy() -> None:
    """As the application builds it: by name, with its targets, as a class made once."""
    config = AutoscalingConfig(
        min_replicas=0, max_replicas=4, policy={"policy_function": POLICY, "policy_kwargs": {"ttft": 0.5}}
    )
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert policy.targets.ttft == 0.5
    with pytest.raises(TypeError, match="patience"):
        Autoscaler(patience=3.0)
