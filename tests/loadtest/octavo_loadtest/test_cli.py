"""The console script as a person uses it, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from octavo_loadtest import campaign, cli
from octavo_loadtest.cli import app
from octavo_loadtest.due import UNFINISHED
from octavo_loadtest.fake_server import Behaviour, running
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.plan import make
from octavo_loadtest.text import Calibration


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


def test_a_load_as_a_person_sends_one(tmp_path: Path) -> None:
    with running(Behaviour(itl=0.001)) as fake:
        arguments = ["load", fake.url, *LOAD, "--rate", "40", "--slo", "ttft=9", "--out", "a"]
        code, line, said = call(*arguments, folder=tmp_path)
    assert (code, line["slo_met"], line["slo_verdict"]) == (0, True, "unresolved")
    assert "met: 100.0% of requests, 99% asked; unresolved" in said
    assert line["points"][0]["failed"] == 0
    code, _, said = inside("report", str(tmp_path / "a" / "report.html"))
    assert (code, "holds no run" in said) == (2, True)


def test_an_interrupted_run_leaves_what_it_has(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo_loadtest", "load"]
    with running(Behaviour(ttft=0.001, itl=0.0)) as fake:
        load = [*LOAD[:2], "--requests", "4000", "--rate", "40", "--warmup", "0", "--slo", "ttft=9", "--out", "a"]
        process = subprocess.Popen(
            [*command, fake.url, *load], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while len(fake.log) < 20 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate()
    assert printed, said
    line = json.loads(printed.splitlines()[-1])
    assert process.returncode == 130
    assert "4000 requests; the last session begins after" in said
    failed = [error for each in read(tmp_path / "a") if (error := json.loads(each)["error"])]
    assert all(error.startswith(UNFINISHED) for error in failed), failed  # where this machine had stopped for a while
    assert (line["stopped"], line["slo_met"], line["points"][0]["failed"]) == ("interrupted", not failed, len(failed))
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


# ---- commands in this process, for a simulated server --------------------------------------------------------------


@pytest.fixture
def asked(simulated: Callable[..., tuple[Run, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Target]:
    """Whom is measured; a server with one slot that answers 33 requests a second at most."""
    found: list[Target] = []

    def measure(load: Load, target: Target, *_: object) -> Run:
        found.append(target)
        if load.seed == 99:
            raise KeyboardInterrupt
        return simulated(load, ttft=0.02, itl=0.002, slots=1)[0]

    monkeypatch.setattr(campaign, "measure", measure)
    monkeypatch.setattr(cli, "find_model", lambda url, headers: "found")
    monkeypatch.setattr(cli, "prepare", lambda target: (target, Calibration()))
    monkeypatch.chdir(tmp_path)
    return found


QUICK = ["http://127.0.0.1:1", "--scale", "0.012", "--warmup", "0", "--arrivals", "constant", "--requests", "60"]


@pytest.mark.parametrize(
    ("slo", "code", "met", "verdict"),
    [("ttft=9", 0, True, "unresolved"), ("ttft=0.001", 1, False, "failed"), ("", 0, None, None)],
)
def test_the_exit_code_says_whether_an_slo_was_met(
    slo: str, code: int, met: bool | None, verdict: str | None, asked: list[Target]
) -> None:
    ended, line, said = inside("load", *QUICK, "--rate", "20", *(["--slo", slo] if slo else []), "--out", "a")
    assert (ended, line.get("slo_met"), line.get("slo_verdict")) == (code, met, verdict)
    assert ("SLO missed" in said) == (met is False)
    assert line["points"][0]["ttft_p50"] == pytest.approx(20, abs=1)
    assert [target.model for target in asked] == ["found"]
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in Path("a").iterdir()}


def test_a_sweep_and_a_search_judge_nobody(asked: list[Target]) -> None:
    """They go beyond what a server can do: a missed SLO is what they look for."""
    code, line, _ = inside(
        "sweep", *QUICK, "--from", "10", "--to", "80", "--steps", "3", "--slo", "ttft=0.05", "--gain", "-1"
    )
    assert (code, line["kind"], len(line["points"])) == (0, "sweep", 3)
    assert line["saturation"]["last_rate_kept"] in (10, 28.3)
    code, line, _ = inside("sweep", *QUICK, "--over", "concurrency", "--from", "1", "--to", "4")
    assert [point["name"] for point in line["points"]][:2] == ["1 at once", "2 at once"]
    code, line, _ = inside(
        "capacity", *QUICK, "--rate", "20", "--slo", "ttft=0.05", "--attainment", "0.7", "--most", "4"
    )
    assert (code, line["kind"]) == (0, "capacity")
    assert line["capacity"]["low"] >= 20


def test_ctrl_c_has_an_exit_code_of_its_own(asked: list[Target]) -> None:
    code, _, said = inside("load", *QUICK, "--seed", "99")
    assert (code, "interrupted before any answer came" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--api", "speech"], "api is one of chat, completions, embeddings"),
        (["--body", "{"], "--body is no JSON"),
        (["--definitions", "mine"], "no definitions called 'mine'"),
        (["--slo", "speed=3"], "an SLO can bound"),
        (["--tokenizer", "nowhere"], "nowhere is no tokenizer"),
        (["--send-key", "safely"], "OCTAVO_LOADTEST_KEY has none"),
        (["--arrivals", "closed"], "a closed loop needs a concurrency"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    arguments: list[str], sentence: str, asked: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OCTAVO_LOADTEST_KEY", raising=False)
    monkeypatch.setattr(campaign, "measure", lambda load, *_: make(load))
    code, _, said = inside("load", *QUICK, *arguments)
    assert (code, sentence in said.replace("\n", " ")) == (2, True), said


def test_what_a_target_is_made_of(asked: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_LOADTEST_KEY", "sk")
    extra = ["--model", "m", "--api", "completions", "--body", '{"seed": 1}', "--timeout", "7", "--new-connections"]
    assert inside("load", *QUICK, "--rate", "20", *extra, "--send-key", "safely")[0] == 0
    assert asked == [
        Target(
            QUICK[0],
            "m",
            "completions",
            {"Authorization": "Bearer sk"},
            {"seed": 1},
            reuse_connections=False,
            timeout=7,
        )
    ]


def test_figures_again_under_other_definitions(asked: list[Target]) -> None:
    for name in "ab":
        inside("load", *QUICK, "--rate", "20", "--repeats", "2", "--out", name)
    figures = {}
    for definitions in ("octavo", "vllm", "guidellm", "aiperf", "mlperf"):
        code, line, _ = inside("report", "a", "--definitions", definitions, "--out", "c")
        assert (code, len(line["points"])) == (0, 1)
        figures[definitions] = line["points"][0]
    assert figures["octavo"]["tpot_p50"] == pytest.approx(2, abs=0.01) == figures["aiperf"]["tpot_p50"]
    assert figures["guidellm"]["tpot_p50"] > 4  # the first token is in it
    assert len(inside("report", "a", "b", "--out", "c")[1]["points"]) == 2  # one load, but of two folders
    code, line, _ = inside("report", "a", "--slo", "ttft=0.001", "--out", "c")
    assert (code, line["slo_met"]) == (1, False)


def test_comparisons_need_a_name_each(asked: list[Target]) -> None:
    inside("load", *QUICK, "--rate", "20", "--out", "a")
    assert [point["name"] for point in inside("compare", "a", "a", "--names", "x,y", "--out", "c")[1]["points"]] == [
        "x",
        "y",
    ]
    code, _, said = inside("compare", "a", "a", "--names", "x")
    assert (code, "2 reports need as many names, not 1" in said) == (2, True)


def test_presets_are_listed_with_their_sources() -> None:
    done = CliRunner().invoke(app, ["workloads"])
    assert done.exit_code == 0
    assert "balanced" in done.output


# ---- mistakes, each one sentence and exit code 2 ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["load", *QUICK, "--attainment", "99"], "attainment is a share"),
        (["load", *QUICK, "--repeats", "0"], "repeats must be 1 or more"),
        (["load", *QUICK, "--price", "-1"], "price must be"),
        (["load", *QUICK, "--timeout", "0"], "timeout must be above 0"),
        (["load", *QUICK, "--body", "[1]"], "body must be an object"),
        (["load", *QUICK, "--seed", "-1"], "seed must be a number from 0 on"),
        (["load", *QUICK, "--duration", "nan"], "duration must be a number from 0 on"),
        (["load", *QUICK, "--out", "file"], "File exists"),
        (["sweep", *QUICK, "--from", "-1"], "rates go from one above 0"),
        (["sweep", *QUICK, "--steps", "0"], "rates go from one above 0"),
        (["sweep", *QUICK, "--over", "users"], "a sweep goes over rate or concurrency, not 'users'"),
        (["sweep", *QUICK, "--over", "concurrency", "--from", "-3"], "1 or more"),
        (["sweep", *QUICK, "--stop-at", "fast"], "no SLO 'fast'"),
        (["capacity", *QUICK, "--slo", "ttft=1", "--most", "0"], "a search needs a probe or more"),
        (["capacity", *QUICK, "--slo", "ttft=1", "--precision", "0"], "a precision above 0"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere", "--definitions", "mine"], "no definitions called 'mine'"),
        (["report", "nowhere", "--attainment", "0"], "attainment is a share"),
        (["compare", "nowhere"], "nowhere is no report"),
        (["compare", "file"], "file is no report"),
        (["timeline", "nowhere"], "nowhere holds no run"),
        (["run", "file"], "file should be a mapping"),
    ],
)
def test_a_mistake_is_said_before_anything_is_sent(
    arguments: list[str], sentence: str, asked: list[Target], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("5")
    code, line, said = inside(*arguments)
    assert (code, line, asked) == (2, {}, [])
    assert sentence in said.replace("\n", " ")
    assert said.startswith("Cannot run: ")


@pytest.mark.parametrize("url", ["http://x:port", "http://x:99999", "http://[::1", "ftp://x", "http://", ""])
def test_an_address_that_is_none(url: str) -> None:
    code, _, said = inside("load", url)
    assert (code, "is no server's address" in said) == (2, True)


def test_a_report_that_cannot_be_written_is_a_sentence_too(asked: list[Target], tmp_path: Path) -> None:
    assert inside("load", *QUICK, "--rate", "20", "--out", "a")[0] == 0
    (tmp_path / "file").write_text("")
    for command in (["report", "a"], ["compare", "a", "a"]):
        code, line, said = inside(*command, "--out", "file")
        assert (code, line, "Cannot run:" in said) == (2, {}, True)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, said = inside("fake", "--port", str(taken.getsockname()[1]))
    assert (code, "address already in use" in said) == (2, True)


# ---- what a command is called, and what it says last -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "name"),
    [
        (["load", "--rate", "20"], "load", "balanced at 20 sessions/s"),
        (["load", "--rate", "20", "--concurrency", "3"], "load", "balanced at concurrency 3"),
        (["load", "--rate", "20", "--name", "mine"], "load", "mine"),
        (["sweep", "--from", "10", "--to", "20", "--steps", "2"], "sweep", "balanced over rate"),
        (["capacity", "--rate", "20", "--slo", "ttft=9", "--most", "1"], "capacity", "Capacity for balanced"),
    ],
)
def test_the_last_line_names_what_was_done(arguments: list[str], kind: str, name: str, asked: list[Target]) -> None:
    code, line, _ = inside(arguments[0], *QUICK, *arguments[1:])
    assert (code, line["kind"], line["name"]) == (0, kind, name)
    page = Path(line["report"])
    assert re.fullmatch(rf"loadtest-{kind}-\d{{8}}-\d{{6}}", page.parent.name)
    assert f"<title>{name}</title>" in page.read_text()
    assert json.loads((page.parent / "report.json").read_text())["name"] == name


def test_one_of_two_slos_that_is_missed_is_named(asked: list[Target]) -> None:
    code, line, said = inside(
        "load", *QUICK, "--rate", "20", "--slo", "ttft=9", "--slo", "ttft=0.001", "--attainment", "0.5"
    )
    assert (code, line["slo_met"], line["slo_verdict"]) == (1, False, "failed")
    assert "SLO missed: balanced at 20 sessions/s: ttft=0.001\n" in said
    code, line, _ = inside("load", *QUICK, "--rate", "20", "--slo", "ttft=9", "--attainment", "0.5")
    assert (code, line["slo_met"], line["slo_verdict"]) == (0, True, "passed")


def test_a_sweep_doubles_from_and_to_what_it_was_given(asked: list[Target]) -> None:
    """And stops at medians; what it judges by is no SLO of its own."""
    code, line, _ = inside("sweep", *QUICK, "--over", "concurrency", "--from", "3", "--to", "13", "--gain", "-1")
    assert [point["name"] for point in line["points"]] == ["3 at once", "6 at once", "12 at once"]
    code, line, _ = inside("sweep", *QUICK, "--from", "20", "--to", "60", "--steps", "3", "--stop-at", "ttft=0.05")
    assert (code, "latency bound" in line["stopped"], "slo_met" in line) == (0, True, False)


def test_names_of_runs_are_text_in_tables_too(asked: list[Target]) -> None:
    """They were read as the terminal's markup, and one that ended with [/] ended the command."""
    step = ["--arrivals", "step:factor=4,at=0.3,share=0.3", "--rate", "10"]
    assert inside("load", *QUICK, *step, "--out", "a")[0] == 0
    done = CliRunner().invoke(app, ["timeline", "a", "--no-png", "--names", "x[/red]<BODY>", "--title", "BODY"])
    assert done.exit_code == 0
    assert "x[/red]<BODY>" in done.output
    page = Path("timeline.html").read_text()
    assert page.count("<h1>BODY</h1>") == 1
    assert "<th>x[/red]&lt;BODY&gt;</th>" in page
    for given, sentence in (
        (["--names", "a,b"], "1 runs need as many names, not 2"),
        (["--burst", "5"], "--burst is START,END"),
        (["--burst", "a,b"], "--burst is START,END"),
    ):
        code, _, said = inside("timeline", "a", "--no-png", *given)
        assert (code, sentence in said) == (2, True)


def test_what_came_to_nothing_has_a_sentence(asked: list[Target], tmp_path: Path) -> None:
    """Ctrl-C before the first answer leaves a folder without a record."""
    assert inside("load", *QUICK, "--rate", "20", "--out", "a")[0] == 0
    (records,) = (tmp_path / "a").glob("*/records.jsonl")
    records.write_text("")
    for command in (["report", "a"], ["timeline", "a", "--burst", "1,2"]):
        code, _, said = inside(*command)
        assert (code, "sent nothing" in said or "nothing was sent" in said) == (2, True)
    inside("load", *QUICK, "--rate", "20", "--out", "b")
    assert len(inside("report", "a", "b", "--out", "c")[1]["points"]) == 1
