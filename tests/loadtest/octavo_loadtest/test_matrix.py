from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from octavo_loadtest import campaign, keys, matrix
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.text import Calibration

EXAMPLE = Path(__file__).parents[3] / "examples" / "loadtest.yaml"


def test_the_example() -> None:
    config = matrix.read(EXAMPLE)
    (server,) = config.servers
    assert server.command[1:] == ["serve", str(EXAMPLE.parent / "../configs/quickstart.yaml"), "--port", "8123"]
    assert Path(server.command[2]).exists()
    assert list(config.loads) == ["prefill-heavy", "decode-heavy"]
    assert [load.rate for load in config.loads["decode-heavy"]] == [0.5, 1, 2]
    assert config.over == "rate"


def test_servers_that_run_already(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("servers: [{name: a, url: 'http://a:1'}, {url: 'http://b:2'}]\nload: {concurrency: 4}\n")
    config = matrix.read(file)
    assert [(each.name, each.command) for each in config.servers] == [("a", []), ("http://b:2", [])]
    assert config.loads["load"][0].concurrency == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a list", "mapping"),
        ("server: {url: x}\ncolour: red", "colour"),
        ("server: {port: 3}", "needs `serve`"),
        ("server: {url: x, image: y}", "image"),
        ("server: {url: x}\nload: {speed: 3}", "speed"),
        ("server: {url: x}\nslo: fast", "fast"),
        ("server: {url: x}\ndefinitions: mine", "mine"),
        ("server: {url: x}\nsend_key: yes please", "send_key is one of never, safely, anywhere"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(LoadTestError, match=sentence):
        matrix.read(file)


# ---- running, with simulated servers ------------------------------------------------------------------------------

TWO = """
name: two servers
servers: [{name: a, url: 'http://a:1'}, {name: b, url: 'http://b:2'}]
slo: ttft=9
load: {scale: 0.01, requests: 20, warmup: 0}
matrix: {workload: [balanced, prefill-heavy], rate: [10, 20]}
"""


@pytest.fixture
def asked(simulated: Callable[..., tuple[Run, Any]], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Target, Load]]:
    """What is measured, where."""
    found: list[tuple[Target, Load]] = []

    def measure(load: Load, target: Target, *_: object) -> Run:
        found.append((target, load))
        if load.seed == 99:
            raise KeyboardInterrupt
        return simulated(load, ttft=0.01, itl=0.0)[0]

    monkeypatch.setattr(campaign, "measure", measure)
    monkeypatch.setattr(matrix, "find_model", lambda url, headers: f"model of {url}")
    monkeypatch.setattr(matrix, "prepare", lambda target: (target, Calibration()))
    return found


def ran(text: str, folder: Path) -> dict[str, Any]:
    (folder / "config.yaml").write_text(text)
    return matrix.run(matrix.read(folder / "config.yaml"), folder / "out", Console(file=io.StringIO()))


def test_every_combination_goes_to_every_server(asked: list[tuple[Target, Load]], tmp_path: Path) -> None:
    document = ran(TWO, tmp_path)
    assert [(target.url, load.workload, load.rate) for target, load in asked] == [
        (url, workload, rate)
        for url in ("http://a:1", "http://b:2")
        for workload in ("balanced", "prefill-heavy")
        for rate in (10, 20)
    ]
    assert {target.model for target, _ in asked} == {"model of http://a:1", "model of http://b:2"}
    assert [each["name"] for each in document["series"]] == [
        "a: balanced", "a: prefill-heavy", "b: balanced", "b: prefill-heavy",
    ]  # fmt: skip
    assert document["points"][0]["name"] == "a: balanced 10"
    assert len(list((tmp_path / "out").rglob("records.jsonl"))) == 8


def test_a_model_and_a_body_go_to_all(asked: list[tuple[Target, Load]], tmp_path: Path) -> None:
    ran(TWO + "model: mine\napi: completions\nbody: {seed: 7}\ntimeout: 5\n", tmp_path)
    assert {(target.model, target.api, target.timeout) for target, _ in asked} == {("mine", "completions", 5)}
    assert asked[0][0].body == {"seed": 7}
    assert asked[0][0].headers == {}


def test_a_key_goes_where_it_is_sent(
    asked: list[tuple[Target, Load]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keys.VARIABLE, "sk-mine")
    ran(TWO + "send_key: anywhere\n", tmp_path)
    assert {target.headers["Authorization"] for target, _ in asked} == {"Bearer sk-mine"}
    with pytest.raises(LoadTestError, match="plain HTTP"):
        ran(TWO + "send_key: safely\n", tmp_path)


def test_ctrl_c_keeps_what_there_is(asked: list[tuple[Target, Load]], tmp_path: Path) -> None:
    document = ran(TWO.replace("rate: [10, 20]", "seed: [1, 99]"), tmp_path)
    assert (document["stopped"], len(asked)) == ("interrupted", 2)
    assert len(document["points"]) == 1


def test_how_long_it_takes_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(TWO + "repeats: 2\n")
    said = matrix.announced(matrix.read(tmp_path / "config.yaml"))
    assert said.startswith("two servers: 16 runs on 2 servers, one after the other; arrivals alone take")
