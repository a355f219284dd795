"""docs/monitoring.md lists every metric as the server has it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.metrics_core import Metric

ROOT = Path(__file__).parents[2]


def test_the_page_lists_every_metric(families: dict[str, Metric]) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text().splitlines()
    missing = [row for row in map(row_of, families.values()) if row not in page]
    assert missing == [], "the page lacks these lines:\n" + "\n".join(missing)
    listed = {line.split("`")[1] for line in page if line.startswith("| `") and line.count("|") == 5}
    assert listed - {name_of(family) for family in families.values()} == set(), "the page lists what is not there"


def name_of(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def row_of(family: Metric) -> str:
    labels = {label for sample in family.samples for label in sample.labels} - {"le"}
    named = ", ".join(f"`{label}`" for label in sorted(labels))
    return f"| `{name_of(family)}` | {family.type} | {named} | {family.documentation} |"
