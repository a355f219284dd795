"""Engines of several makes on the workloads of workloads.py, interleaved, one line of a table each.

    PEERS=FOLDER python examples/peers/compare.py [--rounds 3] [--only NAME,NAME] [--out results.json]

FOLDER is what setup.sh made. Every engine stays loaded; all but the one being measured are stopped (SIGSTOP), so that
threads that spin disturb nobody. A run during which other programs used more than 0.12 cores is repeated, at most
twice. Medians are printed, and all runs kept in the JSON file. Compare figures of one session only: a shared machine's
memory is not equally fast an hour later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import workloads

HERE = Path(__file__).parent
ORDER = ("W1", "W3", "W2", "W4")
FOREIGN = 0.12  # cores
TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    """An engine in a process of its own."""

    def __init__(self, entry: dict[str, Any], threads: int, log: Path, script: str = "engines.py") -> None:
        self.name, self.entry = entry["name"], entry
        python, *arguments = [os.path.expandvars(word) for word in entry["command"]]
        environment = {key: os.path.expandvars(value) for key, value in entry.get("environment", {}).items()}
        begin = time.monotonic()
        self._process = subprocess.Popen(
            [python, str(HERE / script), *arguments, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=os.environ | environment,
        )
        self._answer()
        self.start_seconds = time.monotonic() - begin
        self._signal(signal.SIGSTOP)

    def run(self, workload: str, seed: int) -> dict[str, Any]:
        """One workload, while the others sleep."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        busy, own, begin = machine_seconds(), self._seconds(), time.monotonic()
        print(workload, seed, file=self._process.stdin, flush=True)
        answer = self._answer()
        lasted = time.monotonic() - begin
        foreign = (machine_seconds() - busy - (self._seconds() - own)) / lasted
        self._signal(signal.SIGSTOP)
        return {"rss_mb": self._peak_mb(), "name": self.name, "workload": workload, "foreign": foreign} | answer

    def end(self) -> None:
        """Let it go; its children with it."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(10)
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._signal(signal.SIGKILL)
            raise RuntimeError(f"{self.name} ended: see its log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: int) -> None:
        for pid in family(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _seconds(self) -> float:
        # used by it, its children, and children that have ended: fields 14 to 17
        return sum(sum(map(int, stat(pid)[11:15])) for pid in family(self._process.pid)) / TICKS

    def _peak_mb(self) -> float:
        texts = [read(pid, "status") for pid in family(self._process.pid)]
        return sum(int(text.split("VmHWM:")[1].split()[0]) for text in texts if "VmHWM:" in text) / 1024


def read(pid: int, name: str) -> str:
    """A file of /proc; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def stat(pid: int) -> list[str]:
    return read(pid, "stat").rpartition(")")[2].split()


def family(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if fields := stat(int(path.name)):
            parents.setdefault(int(fields[1]), []).append(int(path.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def machine_seconds() -> float:
    """Seconds that all cores together were busy, other guests' theft left out."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def bandwidth(threads: int) -> float:
    """GB/s that torch reads 1 GiB with, the median of six."""
    import torch

    torch.set_num_threads(threads)
    data, times = torch.ones(2**28), []
    for _ in range(6):
        begin = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - begin)
    return data.nbytes / statistics.median(times) / 1e9


def quiet(seconds: float = 15.0) -> None:
    """Wait until nobody else computes, but not for ever."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = machine_seconds()
        time.sleep(0.5)
        if (machine_seconds() - before) / 0.5 < FOREIGN:
            return


def measure(child: Child, workload: str, number: int) -> dict[str, Any]:
    """The least disturbed of up to three runs."""
    runs = []
    for attempt in range(3):
        quiet()
        runs.append(child.run(workload, 1000 + 10 * number + attempt) | {"round": number})
        if runs[-1]["foreign"] < FOREIGN or runs[-1]["seconds"] > 20:
            break
    return min(runs, key=lambda run: run["foreign"])


def figures(runs: list[dict[str, Any]], workload: str) -> str:
    """The median of what a workload is about, with the least and the most."""
    prompts, outputs = zip(*workloads.make(workload, 0), strict=True)
    of = {
        "W1": lambda run: (outputs[0] - 1) / run["decode"],
        "W2": lambda run: sum(outputs) / run["seconds"],
        "W3": lambda run: sum(map(len, prompts)) / run["seconds"],
        "W4": lambda run: run["seconds"],
    }[workload]
    values = sorted(of(run) for run in runs if run["workload"] == workload)
    digits = 1 if not values or values[0] < 1000 else 0
    return f"{statistics.median(values):.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})" if values else "-"


def table(results: dict[str, Any]) -> str:
    """GitHub's kind."""
    heads = ["engine, weights", "W1 decode tok/s", "W2 output tok/s", "W3 prompt tok/s", "W4 s", "start s",
             "peak memory MB", "worst foreign cores"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, start in results["start_seconds"].items():
        runs = [run for run in results["runs"] if run["name"] == name]
        cells = [name, *(figures(runs, workload) for workload in ("W1", "W2", "W3", "W4")), f"{start:.1f}"]
        cells += [
            f"{max((run['rss_mb'] for run in runs), default=0):.0f}",
            f"{max((run['foreign'] for run in runs), default=0):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def find_tools() -> None:
    """What the config's commands name, where the environment does not."""
    peers = Path(os.environ["PEERS"])
    os.environ.setdefault("OCTAVO_PYTHON", sys.executable)
    os.environ.setdefault("TCMALLOC", next(map(str, Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")), ""))
    os.environ.setdefault("LLAMA_BIN", str(next(peers.glob("llama_cpp_python-*/vendor/llama.cpp/build/bin"), "")))


def start(entries: list[dict[str, Any]], threads: int, logs: Path) -> list[Child]:
    """Load every engine and warm it up; one that does not come up is left out, and its log says why."""
    children = []
    for entry in entries:
        try:
            child = Child(entry, threads, logs / f"{entry['name']}.log")
            for workload in entry.get("warm", ["W1"]):
                child.run(workload, 1)
        except (RuntimeError, OSError) as error:
            print(error, flush=True)
            continue
        print(f"{child.name}: first token after {child.start_seconds:.1f} s", flush=True)
        children.append(child)
    return children


def play(children: list[Child], rounds: int, end: float) -> Iterator[dict[str, Any]]:
    """Every engine's run of every workload in every round, in turn, while there is time."""
    for number in range(rounds):
        for workload in ORDER:
            for child in [child for child in children if number < child.entry["rounds"].get(workload, 0)]:
                if time.monotonic() > end:
                    return
                try:
                    run = measure(child, workload, number)
                except (RuntimeError, OSError) as error:
                    print(error, flush=True)
                    children.remove(child)
                    continue
                print(number, workload, child.name, f"{run['seconds']:.2f} s, foreign {run['foreign']:.2f}", flush=True)
                yield run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "smollm2.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60, help="no run begins later than this")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="names of the config, with commas")
    parser.add_argument("--out", type=Path, default=Path("peers.json"))
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    entries = json.loads(options.config.read_text())
    if options.only:
        entries = [entry for entry in entries if entry["name"] in options.only.split(",")]
    find_tools()
    logs = options.out.with_suffix(".logs")
    logs.mkdir(exist_ok=True)
    rates = [bandwidth(options.threads)]
    children = start(entries, options.threads, logs)
    results: dict[str, Any] = {"start_seconds": {child.name: child.start_seconds for child in children}, "runs": []}
    try:
        for run in play(list(children), options.rounds, end):
            results["runs"].append(run)
            options.out.write_text(json.dumps(results, indent=1))
    finally:
        for child in children:
            child.end()
    rates.append(bandwidth(options.threads))
    print(f"\n{table(results)}\n\nread bandwidth before and after: {rates[0]:.1f}, {rates[1]:.1f} GB/s")


if __name__ == "__main__":
    main()
