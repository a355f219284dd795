"""The benchmark of the kernels runs, on shapes that take no time, and goes on after a case that fails."""

from __future__ import annotations

import json

from octavo_kernels import bench, timing
from octavo_kernels.native.library import Library, supported_levels, use


def test_every_op_is_measured_beside_its_rivals(tmp_path, capsys):
    with use(Library(supported_levels()[-1])):
        bench.main(["--tiny", "--device", "cpu", "--rounds", "2", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert report == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not [result for result in report["results"] if "error" in result]
    ops = {result["op"] for result in report["results"]}
    assert {
        "add_rms_norm",
        "silu_mul",
        "rotary",
        "kv_store",
        "paged_attention",
        "linear_int4",
        "linear_Q4_1",
        "moe",
        "token_mask",
        "log_norm",
    } <= ops
    for result in report["results"]:
        assert result["microseconds"] > 0
        assert result["of_ceiling"] > 0
        assert ("torch_sdpa" in result["rivals"]) == (result["op"] == "paged_attention")


def test_a_case_that_fails_is_reported_and_the_others_go_on(monkeypatch):
    def broken(_):
        raise RuntimeError("no such instruction")
        yield

    monkeypatch.setitem(bench.CASES, "broken", broken)
    report = bench.run(["broken", "kv_store"], "cpu", timing.SIZES["tiny"], rounds=1, seconds=60)
    assert [result.get("error") for result in report["results"]] == ["RuntimeError('no such instruction')", None, None]


def test_nothing_begins_when_the_time_is_up():
    report = bench.run(["kv_store", "rotary"], "cpu", timing.SIZES["tiny"], rounds=1, seconds=0)
    assert [result["error"] for result in report["results"]] == ["the time is up"] * 2
