"""Dashboards and rules read what the server shows: each query parses, each metric and label is there."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric

sys.path.insert(0, str(Path(__file__).parent))
from watching import DASHBOARDS, PROMTOOL, ROOT, queries, rules, selectors

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")

OF_PROMETHEUS = {"instance", "job", "le"}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
FILES = sorted(DASHBOARDS.glob("*.json"))


def asked() -> list[tuple[str, str]]:
    """(where, expression) of every panel's queries and every rule."""
    of_rules = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    return [*((query.where, query.expression) for query in queries()), *of_rules]


@needs_promtool
def test_every_query_parses(tmp_path: Path) -> None:
    recorded = [{"record": f"query{i}", "expr": expression} for i, (_, expression) in enumerate(asked())]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    done = subprocess.run([PROMTOOL, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(recorded)} rules found" in done.stdout


@needs_promtool
def test_the_metrics_follow_prometheus_rules(metrics_text: str) -> None:
    command = [PROMTOOL, "check", "metrics"]
    done = subprocess.run(command, input=metrics_text, capture_output=True, text=True, check=False)
    with_colon = "vllm:", "octavo:prefix_miss_total"
    others = [line for line in done.stderr.splitlines() if not line.startswith(with_colon)]
    assert others == []
    assert all(line.endswith("should not contain ':'") for line in done.stderr.splitlines()), "that is vLLM's to change"


def labels_of(families: dict[str, Metric]) -> dict[str, set[str]]:
    """The labels that each sample's name has."""
    found: dict[str, set[str]] = {"up": set(), **{name: {"model_name"} for name in RECORDED}}
    for family in families.values():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_query_reads_what_is_there(families: dict[str, Metric]) -> None:
    labels, known = labels_of(families), OF_PROMETHEUS.union(*labels_of(families).values())
    wrong = []
    for where, expression in asked():
        read = list(selectors(expression))
        assert read, where
        for name, matchers in read:
            used = set(re.findall(r"(\w+)\s*(?:=|!)", matchers))
            if name not in labels or not used <= labels[name] | OF_PROMETHEUS:
                wrong.append((where, name, used - labels.get(name, set())))
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            wrong += [(where, label) for label in grouped.split(", ") if label not in known]
    assert wrong == []


def test_legends_name_labels_that_are_left() -> None:
    for query in queries():
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", query.expression))))
        named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        if grouped:
            assert named <= grouped - {"le"}, query.where


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "monitoring" / "grafana" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_generator_writes() -> None:
    made = generator()
    assert {file.stem: file.read_text() for file in FILES} == {
        name: made.text(each) for name, each in made.DASHBOARDS.items()
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_have_a_place_a_text_and_a_unit(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {"datasource", "server", "model"} <= names
    used = set(re.findall(r"\$\{?(\w+)", file.read_text()))
    assert {name for name in used if not name.startswith("__")} <= names
