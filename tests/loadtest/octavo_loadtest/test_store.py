from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import store
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run

Simulate = Callable[..., tuple[Run, Any]]
LOAD = Load(scale=0.02, arrivals="constant", rate=10, requests=20, warmup=0, concurrency=2, drain=1.0)


def test_json_has_no_infinity() -> None:
    assert store.plain({"a": [math.inf, -math.inf, math.nan, 1.5], "b": (1, "x")}) == {
        "a": ["inf", None, None, 1.5], "b": [1, "x"],
    }  # fmt: skip
    assert json.loads(store.dumps({"a": math.inf})) == {"a": "inf"}


def test_a_run_comes_back_with_what_was_never_sent(simulated: Simulate, tmp_path: Path) -> None:
    run, _ = simulated(LOAD, ttft=0.9, itl=0.0)
    run.replicas = [(0.0, 1), (1.0, None), (2.0, 3)]
    assert any(record.sent is None for record in run.records)
    store.save(tmp_path / "run", run)
    again = store.read(tmp_path / "run")
    assert again.records == run.records
    assert again.replicas == run.replicas
    assert (again.load, str(again.arrivals), again.planned) == (run.load, str(run.arrivals), run.planned)


def test_no_header_is_kept(simulated: Simulate, tmp_path: Path) -> None:
    run, _ = simulated(LOAD, ttft=0.1, itl=0.0)
    run.target.headers["Authorization"] = "Bearer sk-secret"
    store.save(tmp_path, run)
    assert "sk-secret" not in "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"target": {"url": "x"}}'])
def test_a_folder_that_holds_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(LoadTestError, match="holds no run"):
        store.read(tmp_path)


def test_runs_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="holds no run"):
        store.runs_of(tmp_path)
    for name in ("b", "a/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "meta.json").write_text("{}")
    assert store.runs_of(tmp_path) == [tmp_path / "a" / "c", tmp_path / "b"]
    assert store.runs_of(tmp_path / "b") == [tmp_path / "b"]


@pytest.mark.parametrize(("text", "said"), [("{", "is no report:"), ("{}", "no report of this tool")])
def test_a_file_that_is_no_report(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(LoadTestError, match=said):
        store.read_document(tmp_path)
    with pytest.raises(LoadTestError, match=said):
        store.read_document(tmp_path / "report.json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda each: st.lists(each) | st.dictionaries(st.text(), each),
        max_leaves=20,
    )
)
def test_whatever_is_kept_is_json_that_says_the_same(value: Any) -> None:
    text = store.dumps(value)
    again = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert again == store.plain(value) == store.plain(again)


def test_a_run_without_its_plan_is_kept_too(simulated: Simulate, tmp_path: Path) -> None:
    run, _ = simulated(LOAD, ttft=0.1, itl=0.0)
    run.plan = None
    store.save(tmp_path / "run", run)
    assert not (tmp_path / "run" / "plan.jsonl").exists()
    assert store.read(tmp_path / "run").records == run.records
