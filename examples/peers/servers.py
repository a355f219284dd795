"""Servers beside each other over HTTP, in turns: output tokens a second and when they come, at 1, 16 and 48 at once.

    .venv/bin/python examples/peers/servers.py ours=http://127.0.0.1:8000 llama.cpp=http://127.0.0.1:8001 [--rounds 3]

Each server runs already, all of them on this machine: what nobody asks takes next to nothing of it. Each load is one of
the load tester's, a closed loop of as many chats as are named, the same prompts for all servers of a round; a round's
ratio is of that round alone. llama.cpp's server takes as many at once as `--parallel` says. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FIGURES = {"tok/s": "output_tokens_overall", "TTFT p90 ms": "ttft_p90", "TPOT p50 ms": "tpot_p50"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="NAME=URL", help="the first is ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", default="1,16,48")
    parser.add_argument("--workload", default="balanced")
    parser.add_argument("--scale", default="0.1", help="of the workload's lengths; 0.1 is about 50 tokens in and out")
    given = parser.parse_args()
    servers = dict(each.split("=", 1) for each in given.servers)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for at_once in given.at_once.split(","):
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for number in range(given.rounds + 1):  # one that does not count: the first of each length is slower
            for name in list(servers)[:: 1 if number % 2 else -1]:
                figures = load(servers[name], int(at_once), number, given)
                if number:
                    rounds[name].append(figures)
        found[at_once] = rounds
        told(at_once, rounds)
    print(json.dumps(found))


def load(url: str, at_once: int, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """One run of the load tester."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "octavo_loadtest", "load", url, "--workload", given.workload]
        command += ["--scale", given.scale, "--arrivals", "closed", "--concurrency", str(at_once)]
        command += ["--requests", str(max(48, 3 * at_once)), "--seed", str(seed), "--out", folder]
        command += ["--body", json.dumps({"temperature": 0, "ignore_eos": True})]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{url}: {done.stderr[-1000:]}")
        figures = json.loads((Path(folder) / "report.json").read_text())["points"][0]["figures"]
    if figures["failed"][0]:
        sys.exit(f"{url}: requests failed")
    return {name: figures[key][0] for name, key in FIGURES.items()}


def told(at_once: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    """A line for each server: medians, and the ratio of ours to it."""
    ours = next(iter(rounds.values()))
    for name, runs in rounds.items():
        medians = ", ".join(f"{figure} {statistics.median(run[figure] for run in runs):.1f}" for figure in FIGURES)
        ratio = statistics.median(mine["tok/s"] / run["tok/s"] for mine, run in zip(ours, runs, strict=True))
        print(f"{at_once:>3} at once, {name:12} {medians}; ours {ratio:.2f}x", flush=True)


if __name__ == "__main__":
    main()
