"""What tracing every request costs at 64 streams: traced and not, in turns, at one server.

    python tests/deployments/octavo_serve/proofs/tracing.py [--models smollm2,h100,nothing] [--rounds 8]

A request is traced if its `traceparent` says so, so both kinds run in the same processes: `smollm2` computes, `h100`
is a rehearsal that takes the times of an 8B model, `nothing` one whose steps take no time, so that the gateway's core
is full. The collector, a process beside it, takes and throws away. For each model: tokens per second of both, the
median of the pairs' ratios with its interval of 95 %, and what tracing takes of all cores' time: what the gateway's
CPU per request grows by, times the rate. Where a model computes on all cores, that is what it loses, and it is
steadier than the ratio where others use the machine. Exit code 1 unless `smollm2` loses less than 1 % of the cores,
with its interval, and `h100` less than 1 % of its tokens. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[4] / "examples"))
import benchmark_serving as serving
from running import RunningServer

HERE = Path(__file__).parent
STREAMS = TOKENS = 64
BAR = 0.01
"""The most that tracing may take."""
LOST = {"smollm2": lambda of: of["share"][2] > BAR, "h100": lambda of: of["ratio"][0] < 1 - BAR}
PARENT = b"traceparent: 00-%032x-%016x-01\r\n" % (7, 7)
HEADS = {"traced": serving.HEAD.replace(b"Content-Type", PARENT + b"Content-Type", 1), "plain": serving.HEAD}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", default="smollm2,h100,nothing")
    options.add_argument("--rounds", type=int, default=8, help="pairs of loads")
    options.add_argument(
        "--seconds", type=float, default=5.0, help="of a load; a model that computes answers one batch"
    )
    given = options.parse_args()
    found = {model: measure(model, given.rounds, given.seconds) for model in given.models.split(",")}
    print(json.dumps(found))
    lost = [model for model in found if model in LOST and LOST[model](found[model])]
    sys.exit(f"more than {BAR:.0%}: {', '.join(lost)}" if lost else 0)


def measure(model: str, rounds: int, seconds: float) -> dict[str, Any]:
    rates: dict[str, list[float]] = {kind: [] for kind in HEADS}
    cpu: dict[str, list[float]] = {kind: [] for kind in HEADS}
    with (
        collector() as url,
        tempfile.TemporaryDirectory(prefix="oct") as folder,
        RunningServer(config(model, Path(folder), url), None) as server,
    ):
        (gateway,) = [pid for pid, name in server.replicas() if name.startswith("gateway")]
        for number in range(rounds + 1):  # the first warms up
            for kind in random.Random(number).sample(sorted(HEADS), 2):
                before, most = cpu_seconds(gateway), STREAMS if model == "smollm2" else 10**9
                seed = f"{number}{kind}"
                answers, spent = serving.load(server.port, STREAMS, TOKENS, seed, seconds, most, HEADS[kind])
                if number:
                    rates[kind].append(len(answers) * TOKENS / spent)
                    cpu[kind].append((cpu_seconds(gateway) - before) / len(answers))
                    print(model, kind, f"{rates[kind][-1]:.1f} tok/s, {1e3 * cpu[kind][-1]:.3f} ms", flush=True)
    pairs = list(zip(rates["traced"], rates["plain"], cpu["traced"], cpu["plain"], strict=True))
    cores = len(os.sched_getaffinity(0))
    return {
        "ratio": with_interval([traced / plain for traced, plain, _, _ in pairs]),
        "share": with_interval([(more - less) * plain / TOKENS / cores for _, plain, more, less in pairs]),
        "tokens_per_second": {kind: statistics.median(values) for kind, values in rates.items()},
        "gateway_ms_per_request": {kind: 1e3 * statistics.median(values) for kind, values in cpu.items()},
    }


def with_interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and its interval by drawing from the values again."""
    rng = random.Random(1)
    drawn = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), drawn[50], drawn[-51]


def config(model: str, folder: Path, url: str) -> Path:
    settings = {
        "models": [{"name": "m", "source": serving.SOURCE, "num_cpus": 0.01, "engine": serving.engine(model, folder)}],
        "gateway": {"traces": {"endpoint": url, "sample": 0.0}},
    }
    app = {"name": "octavo", "route_prefix": "/", "import_path": "octavo_serve.app:build", "args": settings}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [app]}))
    return path


def cpu_seconds(pid: int) -> float:
    """CPU time that a process's threads have used."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def collector() -> Iterator[str]:
    """The URL of a collector that throws away what it takes, in a process of its own."""
    process = subprocess.Popen([sys.executable, str(HERE / "collector.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
