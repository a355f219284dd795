"""The console script as a person uses it, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from octavo_loadtest.cli import app
from octavo_loadtest.fake_server import Behaviour, running


def call(*arguments: str, folder: Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, the last line of stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "octavo_loadtest", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


def inside(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """The same in this process, for commands that start none."""
    done = CliRunner().invoke(app, arguments)
    lines = done.stdout.strip().splitlines()
    return done.exit_code, json.loads(lines[-1]) if lines else {}, done.stderr


LOAD = ["--scale", "0.02", "--requests", "20", "--warmup", "1"]


def test_load_compare_and_report(tmp_path: Path) -> None:
    with running(Behaviour(itl=0.001)) as fake:
        code, line, said = call(
            "load", fake.url, *LOAD, "--rate", "40", "--slo", "ttft=9", "--out", "a", folder=tmp_path
        )
        assert (code, line["slo_met"], line["slo_verdict"]) == (0, True, "unresolved")
        assert "met: 100.0% of requests, 99% asked; unresolved" in said
        code, line, said = call(
            "load", fake.url, *LOAD, "--rate", "40", "--slo", "ttft=0.001", "--out", "b", folder=tmp_path
        )
        assert (code, line["slo_met"]) == (1, False)
        assert "SLO missed" in said
        assert "missed: 0.0% of requests, 99% asked; failed" in said
    a, b, c, d = (str(tmp_path / name) for name in "abcd")
    code, line, _ = inside("compare", a, b, "--names", "before,after", "--out", c)
    assert [point["name"] for point in line["points"]] == ["before", "after"]
    run = next(path for path in (tmp_path / "a").iterdir() if path.is_dir())
    whole, single = (inside("report", str(given), "--definitions", "guidellm", "--out", d) for given in (a, run))
    assert whole[0] == 0
    assert whole[1]["points"] == [single[1]["points"][0] | {"name": f"a/{run.name}"}]
    both = inside("report", a, b, "--out", d)[1]["points"]
    assert len(both) == 2  # one load, but of two folders
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in (tmp_path / "d").iterdir()}
    code, _, said = inside("report", d)
    assert (code, "holds no run" in said) == (2, True)


def test_an_interrupted_run_leaves_what_it_has(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo_loadtest", "load"]
    with running(Behaviour(ttft=0.001, itl=0.0)) as fake:
        load = [*LOAD[:2], "--requests", "4000", "--rate", "40", "--warmup", "0", "--slo", "ttft=9", "--out", "a"]
        process = subprocess.Popen(
            [*command, fake.url, *load], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while len(fake.log) < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    line = json.loads(printed.splitlines()[-1])
    assert process.returncode == 130
    assert "4000 requests; the last session begins after" in said
    assert (line["stopped"], line["slo_met"], line["points"][0]["failed"]) == ("interrupted", True, 0)
    assert f"interrupted after {len(read(tmp_path / 'a'))} of 4000 requests" in said


def read(folder: Path) -> list[str]:
    (records,) = folder.glob("*/records.jsonl")
    return records.read_text().splitlines()


def test_run_starts_a_server_and_leaves_none(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "name": "a matrix",
        "server": {
            "command": [sys.executable, "-m", "octavo_loadtest", "fake", "--port", str(port), "--itl", "0.001"],
            "url": f"http://127.0.0.1:{port}",
        },
        "slo": "ttft=9",
        "load": {"scale": 0.01, "requests": 10, "warmup": 0},
        "matrix": {"workload": ["balanced", "prefill-heavy"], "rate": [30, 60]},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    code, line, said = call("run", "config.yaml", "--out", "out", folder=tmp_path)
    assert code == 0, said
    assert "a matrix: 4 runs on 1 servers, one after the other; arrivals alone take 1 s" in said
    names = [point["name"] for point in line["points"]]
    assert names == ["balanced 30", "balanced 60", "prefill-heavy 30", "prefill-heavy 60"]
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))


def test_bad_words_end_with_a_sentence() -> None:
    for arguments, sentence in (
        (["load", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["load", "http://127.0.0.1:9", "--rate", "0"], "rate must be above 0"),
        (["capacity", "http://127.0.0.1:9"], "needs an --slo"),
        (["run", "missing.yaml"], "cannot be read"),
    ):
        code, _, said = inside(*arguments)
        assert code == 2, said
        assert sentence in said


def test_a_server_that_dies_is_reported_with_its_log(tmp_path: Path) -> None:
    server = {"command": [sys.executable, "-c", "raise SystemExit('no model')"], "url": "http://127.0.0.1:9"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"server": server}))
    code, _, said = inside("run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "no model" in said


def test_the_package_imports_none_of_its_neighbours() -> None:
    code = (
        "import sys, octavo_loadtest.cli; "
        "print([m for m in sys.modules if m.split('.')[0] in ('ray', 'torch', 'octavo', 'octavo_serve')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"
