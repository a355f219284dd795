"""A real Prometheus that watches a server, and what dashboards and rules ask of it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from octavo_serve.command.serve_command import free_block

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "monitoring" / "grafana" / "dashboards"
RULES = ROOT / "monitoring" / "prometheus" / "rules" / "octavo.yaml"
PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")

SCRAPE_SECONDS = 0.5
WINDOW = "10s"
"""For `$__rate_interval` and `$__range`: what a test's load lasts."""

OURS = re.compile(r"\b((?:vllm:|octavo[_:]|gen_ai_server_|process_|model_name:|instance:|up\b)[\w:]*)(\{[^}]*\})?")


@dataclass(frozen=True, slots=True)
class Query:
    """One query of one panel, its variables filled in.

    Attributes:
        where: dashboard, panel, legend.
    """

    where: str
    expression: str
    legend: str
    unit: str


def queries() -> Iterator[Query]:
    """All queries of all dashboards, over everything that there is to select."""
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                legend, expression = target["legendFormat"], filled_in(target["expr"])
                where = f"{file.stem} / {panel['title']} / {legend}"
                yield Query(where, expression, legend, panel["fieldConfig"]["defaults"]["unit"])


def filled_in(expression: str) -> str:
    """With Grafana's variables as they are when everything is selected."""
    return re.sub(r'"\$\w+"', '".*"', re.sub(r"\$__\w+", WINDOW, expression))


def rules() -> list[dict[str, Any]]:
    """All rules, recorded ones and alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """(name, matchers in braces or "") of everything that an expression reads."""
    for found in OURS.finditer(expression):
        yield found[1], found[2] or ""


class Prometheus:
    """Prometheus for the length of a `with` block, with the project's rules.

    Args:
        url: of the server that it watches.
        folder: of its own.
        key: that it shows to the server.
    """

    def __init__(self, url: str, folder: Path, key: str = "") -> None:
        self._folder, self._port = folder, free_block(1)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}/api/v1", timeout=30)
        job: dict[str, Any] = {
            "job_name": "octavo",
            "scrape_interval": f"{round(1000 * SCRAPE_SECONDS)}ms",
            "scrape_timeout": f"{round(1000 * SCRAPE_SECONDS)}ms",
            "static_configs": [{"targets": [url.removeprefix("http://")]}],
        }
        if key:
            job["authorization"] = {"credentials": key}
        config = {"global": {"evaluation_interval": "1s"}, "rule_files": [str(RULES)], "scrape_configs": [job]}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Prometheus:
        assert PROMETHEUS is not None
        command = [
            PROMETHEUS,
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=error",
        ]
        self._process = subprocess.Popen(command)
        try:
            self._wait(time.monotonic() + 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait()

    def _wait(self, end: float) -> None:
        """Until it has read the server's metrics."""
        while not self._is_ready() or not any(value == 1 for _, value in self.query('up{job="octavo"}')):
            assert self._process.poll() is None, "Prometheus has ended"
            assert time.monotonic() < end, "Prometheus does not reach the server"
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return self._client.get("/status/runtimeinfo").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of everything that an expression gives now."""
        answer = self._client.get("/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer['error']}"
        return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]

    def seen(self, expression: str) -> list[tuple[dict[str, str], dict[float, float]]]:
        """(labels, value by time) of everything that an expression has given so far; numbers alone, by the second."""
        end = time.time()
        span = {"query": expression, "start": end - 600, "end": end, "step": 1}
        answer = self._client.get("/query_range", params=span).json()
        assert answer["status"] == "success", f"{expression}: {answer['error']}"
        found = [(series["metric"], _numbers(series["values"])) for series in answer["data"]["result"]]
        return [(labels, values) for labels, values in found if values]

    def most(self, expression: str) -> float | None:
        """The largest number that an expression has given so far; None where it gave none."""
        return max((max(values.values()) for _, values in self.seen(expression)), default=None)

    def rules(self) -> list[dict[str, Any]]:
        """What Prometheus says of each rule: health, last error, alerts."""
        return [rule for group in self._client.get("/rules").json()["data"]["groups"] for rule in group["rules"]]


def _numbers(points: list[tuple[float, str]]) -> dict[float, float]:
    return {at: value for at, text in points if not math.isnan(value := float(text))}
