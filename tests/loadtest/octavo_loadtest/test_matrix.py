from __future__ import annotations

import io
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from octavo_loadtest import campaign, keys, matrix, store
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
        ("server: {url: x}\nrepeats: 0", "repeats must be 1 or more"),
        ("server: {url: x}\nrepeats: many", "wrong kind"),
        ("server: {url: x}\nattainment: 99", "a share above 0 and up to 1"),
        ("server: {url: x}\nprice: [1]", "wrong kind"),
        ("server: {url: x}\napi: speech", "api is one of chat, completions, embeddings"),
        ("server: {url: x}\nbody: [1]", "body must be an object"),
        ("server: {url: x}\ntimeout: 0", "timeout must be above 0 s"),
        ("server: {url: x}\ntimeout: soon", "wrong kind"),
        ("server: {url: x, timeout: soon}", "wrong kind"),
        ("server: {serve: a.yaml, port: http}", "wrong kind"),
        ("servers: 5", "wrong kind"),
        ("server: {url: x}\nload: [1]", "wrong kind"),
        ("server: {url: x}\nload: {rate: [1]}", "rate"),
        ("server: {url: x}\nmatrix: [rate]", "wrong kind"),
        ("server: {url: x}\nmatrix: {rate: []}", "a value or more of each"),
        ("server: {url: x}\nmatrix: {rate: [1], seed: []}", "a value or more of each"),
        ("a: [", "cannot be read"),
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


INNER = ["url", "command", "serve", "port", "timeout", "name", "rate", "workload"]
WORDS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text("ab=.,:/", max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(INNER), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = ["name", "server", "servers", "load", "matrix", "slo", "attainment", "repeats", "price", "definitions", "model",
        "api", "body", "timeout", "send_key"]  # fmt: skip


@given(document=st.dictionaries(st.sampled_from(KEYS), WORDS, max_size=4))
@settings(max_examples=120)
def test_whatever_a_file_says_is_a_config_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump({"server": {"url": "http://x"}} | document))
    with suppress(LoadTestError):
        config = matrix.read(file)
        assert config.servers
        assert all(config.loads.values())
        assert config.judging.repeats >= 1


def test_what_is_left_empty_is_as_if_it_was_not_there(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("server: {url: x}\nload:\nmatrix:\n")
    assert matrix.read(file).loads == {"load": [Load()]}


def test_a_config_file_may_stand_beside_what_it_serves(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("x: 1")
    file = tmp_path / "config.yaml"
    file.write_text("server: {serve: model.yaml}")
    (server,) = matrix.read(file).servers
    assert server.command[1:] == ["serve", str(tmp_path / "model.yaml"), "--port", "8000"]
    assert (server.url, server.name) == ("http://127.0.0.1:8000", "http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("axes", "over", "names"),
    [
        ("{rate: [1, 2]}", "rate", {"load": [(1.0, 0), (2.0, 0)]}),
        ("{concurrency: [4, 8], rate: 3}", "rate", {"4": [(3.0, 4)], "8": [(3.0, 8)]}),
        ("{concurrency: [4, 8]}", "concurrency", {"load": [(1.0, 4), (1.0, 8)]}),
        ("{seed: [7, 8], workload: [rag, balanced]}", "run",
         {f"{seed}, {name}": [(1.0, 0)] for seed in (7, 8) for name in ("rag", "balanced")}),
    ],
)  # fmt: skip
def test_one_axis_becomes_curves_and_the_others_name_them(
    axes: str, over: str, names: dict[str, list[tuple[float, int]]], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"server: {{url: x}}\nmatrix: {axes}")
    config = matrix.read(file)
    assert config.over == over
    assert {name: [(load.rate, load.concurrency) for load in loads] for name, loads in config.loads.items()} == names


def test_a_port_that_is_taken_is_not_measured_for_the_server_that_did_not_start(tmp_path: Path) -> None:
    """What was left from an earlier run answers, and its figures had the new server's name."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"server": {"url": url, "command": ["never", "started"], "name": "new"}}))
        with pytest.raises(LoadTestError, match="is taken: what listens there would be measured in place of new"):
            matrix.run(matrix.read(file), tmp_path / "out", Console(file=io.StringIO()))


def test_a_server_that_fails_ends_the_matrix_with_its_name(
    asked: list[tuple[Target, Load]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is made up for it: what was measured before lies in its folder, and `report` finds it."""

    def prepare(target: Target) -> tuple[Target, Calibration]:
        if target.url == "http://b:2":
            raise LoadTestError("http://b:2 answers 500: no")
        return target, Calibration()

    monkeypatch.setattr(matrix, "prepare", prepare)
    with pytest.raises(LoadTestError, match="b:2 answers 500"):
        ran(TWO, tmp_path)
    assert len(store.runs_of(tmp_path / "out")) == len(asked) == 4
