"""A run's folder: plan.jsonl, records.jsonl and meta.json, from which everything can be derived again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo_loadtest import arrivals, load, plan, record
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.job import Target
from octavo_loadtest.measure import Run, Senders
from octavo_loadtest.text import Calibration


def plain(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by "inf" and null."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def save(folder: Path, run: Run) -> None:
    """Write a run. Header values that are secrets are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    record.save(folder / "records.jsonl", run.records)
    if run.plan is not None:
        plan.save(run.plan, folder / "plan.jsonl")
    meta = {
        "target": {**asdict(run.target), "headers": {}},
        "load": load.to_dict(run.load),
        "arrivals": str(run.arrivals),
        "planned": run.planned,
        "salt": run.salt,
        "calibration": asdict(run.calibration),
        "warmed": run.warmed,
        "started": run.started,
        "senders": {
            "lags": [round(lag, 6) for lag in run.senders.lags],
            "cpu_shares": run.senders.cpu_shares,
        },
        "replicas": run.replicas,
        "interrupted": run.interrupted,
    }
    (folder / "meta.json").write_text(dumps(meta))


def read(folder: Path) -> Run:
    """Read a run back.

    Raises:
        LoadTestError: the folder holds none.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return Run(
            Target(**meta["target"]),
            load.from_dict(meta["load"]),
            arrivals.parse(meta["arrivals"]),
            meta["planned"],
            meta["salt"],
            Calibration(**meta["calibration"]),
            meta["warmed"],
            meta["started"],
            list(record.load(folder / "records.jsonl")),
            Senders(meta["senders"]["lags"], meta["senders"]["cpu_shares"]),
            [(at, count) for at, count in meta["replicas"]],
            meta["interrupted"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadTestError(f"{folder} holds no run: {error}") from None


def runs_of(folder: Path) -> list[Path]:
    """The runs in a folder that `load`, `sweep` or `run` wrote, or the folder itself if it is a run.

    Raises:
        LoadTestError: there is none.
    """
    if (folder / "meta.json").exists():
        return [folder]
    found = sorted(file.parent for file in folder.rglob("meta.json"))
    if not found:
        raise LoadTestError(f"{folder} holds no run: neither it nor a folder in it has a meta.json")
    return found


def read_document(path: Path) -> dict[str, Any]:
    """A report.json, or the one in a folder.

    Raises:
        LoadTestError: there is none.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise LoadTestError(f"{file} is no report: {error}") from None
    if not (isinstance(found, dict) and found.get("points")):
        raise LoadTestError(f"{file} is no report of this tool")
    return found
