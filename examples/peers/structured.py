"""Answers that keep to a schema, in Octavo, vLLM (CPU) and llama.cpp: tokens per second in turns, beside free text.

    PEERS=FOLDER python examples/peers/structured.py [--rounds 5] [--only NAME,NAME] [--out structured.json]

FOLDER is what setup.sh made; an engine whose parts are not there is left out, and structured.logs says why. vLLM's
Python needs jsonschema-rs, too. One stream, greedy; two schemas, each of which an engine has seen before; then one
token of a schema that is new, beside one of none. All engines stay loaded, and those that are not measured are stopped.
The last line is JSON: medians, by engine and schema.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from compare import Child, find_tools, quiet
from structured_engines import SCHEMAS

ENGINES: list[dict[str, Any]] = [
    {"name": "octavo", "command": [sys.executable, "octavo", "$PEERS/models/smollm2-q4_1.gguf"]},
    {"name": "octavo float32",
     "command": [sys.executable, "octavo", "$PEERS/models/smollm2-q4_1.gguf", "--dtype", "float32"]},
    *({"name": f"vLLM {backend}",
       "command": ["$PEERS/vllm/bin/python", "vllm", "$PEERS/models/smollm2-hf", "--backend", backend],
       "environment": {"LD_PRELOAD": "$TCMALLOC:$PEERS/vllm/lib/libiomp5.so"}} for backend in ("xgrammar", "guidance")),
    {"name": "llama.cpp", "command": [sys.executable, "llama-server", "$PEERS/models/smollm2-q4_1.gguf"]},
]  # fmt: skip


def start(entry: dict[str, Any], options: argparse.Namespace, logs: Path) -> Child | None:
    try:
        return Child(entry, options.threads, logs / f"{entry['name']}.log", "structured_engines.py")
    except (RuntimeError, OSError) as error:
        print(f"left out: {error}", flush=True)
        return None


def measure(children: list[Child], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Medians of all rounds, by engine and schema; an answer that is not valid ends it."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        child.name: {schema: [] for schema in SCHEMAS} for child in children
    }
    for turn in range(1, rounds + 1):
        for schema in SCHEMAS:
            for child in children:
                quiet(3)
                run = child.run(schema, turn)
                if not run["valid"]:
                    raise SystemExit(f"{child.name}: not valid")
                runs[child.name][schema].append(run)
                print(turn, schema, child.name, {key: round(run[key], 4) for key in KEYS if key in run}, flush=True)
    return {name: {schema: medians(found[schema]) for schema in SCHEMAS} for name, found in runs.items()}


KEYS = "tokens", "seconds", "free_seconds", "new", "none", "foreign"


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens per second with and without the schema, and milliseconds to a token of a new one and of none."""
    figures = {
        "tok_s": [run["tokens"] / run["seconds"] for run in runs],
        "free_tok_s": [run["tokens"] / run["free_seconds"] for run in runs],
        "new_ms": [1e3 * run["new"] for run in runs],
        "none_ms": [1e3 * run["none"] for run in runs],
        "foreign_cores": [run["foreign"] for run in runs],
    }
    return {name: round(statistics.median(values), 2) for name, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="names of engines, with commas")
    parser.add_argument("--out", type=Path, default=Path("structured.json"))
    options = parser.parse_args()
    find_tools()
    logs = options.out.with_suffix(".logs")
    logs.mkdir(exist_ok=True)
    wanted = [entry for entry in ENGINES if not options.only or entry["name"] in options.only.split(",")]
    children = [child for entry in wanted if (child := start(entry, options, logs)) is not None]
    try:
        found = measure(children, options.rounds)
    finally:
        for child in children:
            child.end()
    options.out.write_text(json.dumps(found, indent=1))
    for name, schemas in found.items():
        for schema, figures in schemas.items():
            print(f"{name:18} {schema:8}", *(f"{key} {value}" for key, value in figures.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
