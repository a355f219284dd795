"""`run config.yaml`: start each server, load it through a matrix, tear it down, report.

    name: Two mixes on the quickstart server
    server: {serve: configs/quickstart.yaml, port: 8123}     # or {command: [...], url: ...}, or {url: ...}
    slo: [ttft=0.5]
    load: {scale: 0.1, requests: 60}
    matrix:
      workload: [prefill-heavy, decode-heavy]
      rate: [0.5, 1, 2]

Every combination of the matrix is a run. `rate` and `concurrency` become curves; the rest names them. With `servers:`,
a list of such entries with a `name` each, the same loads go to one after the other.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import yaml
from rich.console import Console

from octavo_loadtest import child, keys, load, slo
from octavo_loadtest.campaign import Campaign, Document, Interrupted, Judging, cut_short
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.job import Target
from octavo_loadtest.live import spoken
from octavo_loadtest.metrics import DEFINITIONS
from octavo_loadtest.plan import make
from octavo_loadtest.server import find_model, prepare, taken
from octavo_loadtest.text import Calibration

CURVES = ("rate", "concurrency")
Prepared = tuple[Target, Calibration]


@dataclass(frozen=True, slots=True)
class Server:
    """A server's URL, and the command that starts it (None: it runs already)."""

    name: str
    url: str
    command: list[str]
    timeout: float = 900.0  # s until it answers


@dataclass(frozen=True, slots=True)
class Config:
    """A file's content."""

    name: str
    servers: list[Server]
    loads: dict[str, list[load.Load]]  # curve -> its points
    over: str
    judging: Judging
    target: dict[str, Any] = field(default_factory=dict)  # model, api, body, timeout
    send_key: keys.Sending = "never"


def read(path: Path) -> Config:
    """Read and check a config file.

    Raises:
        LoadTestError: it is not YAML, or has an invalid setting; the message names it.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LoadTestError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise LoadTestError(f"{path} should be a mapping with `server` and `load`")
    known = {"name", "server", "servers", "load", "matrix", "slo", "attainment", "repeats", "price", "definitions"}
    target = {key: document.pop(key) for key in ("model", "api", "body", "timeout") if key in document}
    sending = document.pop("send_key", "never")
    if sending not in get_args(keys.Sending):
        raise LoadTestError(f"{path}: send_key is one of {', '.join(get_args(keys.Sending))}, not {sending!r}")
    if unknown := set(document) - known:
        raise LoadTestError(f"{path}: no such key: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    try:
        config = _config(document, path, target, sending)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LoadTestError(f"{path} has a value of the wrong kind: {error}") from None
    if not all(config.loads.values()) or not config.loads:
        raise LoadTestError(f"{path}: a matrix needs a value or more of each of its axes")
    return config


def _config(document: dict[str, Any], path: Path, target: dict[str, Any], sending: keys.Sending) -> Config:
    Target("", **{"model": "", **target})  # says what is wrong with it before anything is started
    axes = {key: value if isinstance(value, list) else [value] for key, value in (document.get("matrix") or {}).items()}
    servers = document.get("servers") or [document.get("server") or {}]
    return Config(
        str(document.get("name", path.stem)),
        [_server(entry, path.parent) for entry in servers],
        dict(_loads(document.get("load") or {}, axes)),
        next((axis for axis in CURVES if axis in axes), "run"),
        _judging(document),
        target,
        sending,
    )


def _server(entry: dict[str, Any], folder: Path) -> Server:
    if unknown := set(entry) - {"name", "serve", "port", "command", "url", "timeout"}:
        raise LoadTestError(f"a server has no {', '.join(unknown)}; it has serve and port, or command and url, or url")
    if "serve" in entry:
        port = int(entry.get("port", 8000))
        file = Path(entry["serve"])
        file = file if file.exists() else folder / file
        beside = Path(sys.executable).with_name("octavo")
        octavo = str(beside) if beside.exists() else shutil.which("octavo") or "octavo"
        command, url = [octavo, "serve", str(file), "--port", str(port)], f"http://127.0.0.1:{port}"
    elif "url" in entry:
        command, url = [str(part) for part in entry.get("command", [])], str(entry["url"])
    else:
        raise LoadTestError("a server needs `serve` (a Serve config), or `url` with or without `command`")
    return Server(str(entry.get("name", url)), url, command, float(entry.get("timeout", 900)))


def _loads(common: dict[str, Any], axes: dict[str, list[Any]]) -> Iterator[tuple[str, list[load.Load]]]:
    curve = next((axis for axis in CURVES if axis in axes), None)
    others = [axis for axis in axes if axis != curve]
    for values in product(*(axes[axis] for axis in others)):
        chosen = common | dict(zip(others, values, strict=True))
        points = [chosen | {curve: value} for value in axes[curve]] if curve else [chosen]
        yield ", ".join(str(value) for value in values) or "load", [load.from_dict(point) for point in points]


def _judging(document: dict[str, Any]) -> Judging:
    wanted = document.get("slo", [])
    definitions = document.get("definitions", "octavo")
    if definitions not in DEFINITIONS:
        raise LoadTestError(f"no definitions called {definitions!r}; there are {', '.join(DEFINITIONS)}")
    return Judging(
        [slo.parse(text) for text in ([wanted] if isinstance(wanted, str) else wanted)],
        float(document.get("attainment", 0.99)),
        definitions,
        float(document.get("price", 0.0)),
        int(document.get("repeats", 1)),
    )


def run(config: Config, folder: Path, console: Console) -> Document:
    """Everything the config asks for, as one document."""
    folder.mkdir(parents=True, exist_ok=True)
    console.print(announced(config), markup=False, soft_wrap=True)
    series: list[Document] = []
    try:
        for i, server in enumerate(config.servers):
            if server.command:
                console.print(f"Starting {' '.join(server.command)}", markup=False, soft_wrap=True)
            with _started(config, server, folder / f"server-{i + 1}.log") as prepared:
                _curves(config, server, prepared, folder / f"server-{i + 1}", console, series)
    except (Interrupted, KeyboardInterrupt):
        return cut_short(_document(config, series))
    return _document(config, series)


def _document(config: Config, series: list[Document]) -> Document:
    series = [each for each in series if each["points"]]
    points = [
        {**point, "name": f"{each['name']} {point['name']}".strip()} for each in series for point in each["points"]
    ]
    return {"kind": "matrix", "over": config.over, "name": config.name, "points": points, "series": series}


def announced(config: Config) -> str:
    """How many runs there will be, and how long they take at least."""
    loads = [each for points in config.loads.values() for each in points]
    plans = [make(each) for each in loads]
    seconds = sum(each.load.duration if each.arrivals.closed else each.sessions[-1].at for each in plans)
    runs = len(loads) * len(config.servers) * config.judging.repeats
    return (
        f"{config.name}: {runs} runs on {len(config.servers)} servers, one after the other; arrivals alone take "
        f"{spoken(seconds * len(config.servers) * config.judging.repeats)}"
    )


def _started(config: Config, server: Server, log: Path) -> AbstractContextManager[Prepared]:
    """A server that has answered a request of the kind that it will get."""
    target = Target(server.url, **{"model": "", **config.target}, headers=keys.headers(server.url, config.send_key))

    def ask() -> Prepared:
        model = target.model or find_model(server.url, target.headers)
        return prepare(replace(target, model=model))

    if not server.command:
        return nullcontext(ask())
    if taken(server.url):
        raise LoadTestError(f"{server.url} is taken: what listens there would be measured in place of {server.name}")
    return child.running(server.command, log, server.timeout, ask)


def _curves(
    config: Config, server: Server, prepared: Prepared, folder: Path, console: Console, series: list[Document]
) -> None:
    """Measure one server, and add a curve to `series` for each of its loads as its points come."""
    target, calibration = prepared
    for name, loads in config.loads.items():
        title = f"{server.name}: {name}" if len(config.servers) > 1 else name
        campaign = Campaign(target, calibration, config.judging, folder / name.replace("/", "-"), console)
        points: list[dict[str, Any]] = []
        series.append({"kind": "sweep", "over": config.over, "name": title, "points": points})
        for each in loads:
            value = getattr(each, config.over) if config.over in CURVES else 0
            try:
                points.append(campaign.point(f"{value:g}" if config.over in CURVES else "", value, each))
            except Interrupted as interrupted:
                points += interrupted.points
                raise
