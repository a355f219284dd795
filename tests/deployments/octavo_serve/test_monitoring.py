"""A real Prometheus watches a real server: every panel of the dashboards shows something, and every rule can be judged.

What only failovers and a changing number of shards show is in `proofs/monitoring.py`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "monitoring"))
from watching import PROMETHEUS, PROMTOOL, Prometheus, queries, rules, selectors

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: apt install prometheus)"),
]

ELSEWHERE = ("octavo_key_requests", "octavo_quota_refusals", "octavo_scaling_")
"""Metrics of what the server of the tests does not have: API keys, quotas, a number of shards that follows the load."""


def ask(server: Any, until: float) -> None:
    """Chats and completions, some of them alike, one refused."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while time.monotonic() < until:
            prompt = "The sea, the wind and the stones. " * 8
            client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 12, "ignore_eos": True})
            chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "ignore_eos": True}
            client.post("/v1/chat/completions", json=chat)
            client.post("/v1/chat/completions", json={"messages": []})


@pytest.fixture(scope="module")
def prometheus(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One that has watched eight seconds of load."""
    with Prometheus(server.url, tmp_path_factory.mktemp("prometheus")) as watching:
        until = time.monotonic() + 8
        clients = [threading.Thread(target=ask, args=(server, until)) for _ in range(3)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        yield watching


def test_no_panel_is_empty(prometheus: Prometheus) -> None:
    shown = [query for query in queries() if not any(name in query.expression for name in ELSEWHERE)]
    assert [query.where for query in shown if prometheus.most(query.expression) is None] == []


def test_every_rule_can_be_judged(prometheus: Prometheus) -> None:
    assert [rule["lastError"] for rule in prometheus.rules() if rule["health"] != "ok"] == []
    assert len(prometheus.rules()) == len(rules())
    missing = [(rule["expr"], name + matchers) for rule in rules() for name, matchers in selectors(rule["expr"])
               if not prometheus.query(f"count({name}{matchers})")]  # fmt: skip
    assert missing == []


def test_nothing_is_wrong_with_a_server_that_answers(prometheus: Prometheus) -> None:
    firing = prometheus.query('ALERTS{alertstate="firing",severity="page"}')
    assert firing == []


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)")
def test_a_servers_metrics_follow_prometheus_rules(server: Any) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if not line.startswith(("vllm:", "octavo:"))] == []
