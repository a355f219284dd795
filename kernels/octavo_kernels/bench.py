"""Times every op beside what the machine can do and what torch does (`timing` says how).

    python -m octavo_kernels.bench                      on a GPU if there is one, otherwise on the CPU
    python -m octavo_kernels.bench --op paged_attention,linear --out results

Prints a line per case, and everything as JSON in the last line. The cases of each op are in `OP/bench.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import octavo_kernels.activation.bench
import octavo_kernels.kv_store.bench
import octavo_kernels.linear.bench
import octavo_kernels.log_norm.bench
import octavo_kernels.moe.bench
import octavo_kernels.paged_attention.bench
import octavo_kernels.qkv_rope_store.bench
import octavo_kernels.rms_norm.bench
import octavo_kernels.rotary.bench
import octavo_kernels.sampling.bench
import octavo_kernels.token_mask.bench
from octavo_kernels.native.library import library
from octavo_kernels.timing import SIZES, Bench, Case, Measured, Size

CASES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "rms_norm": octavo_kernels.rms_norm.bench.cases,
    "activation": octavo_kernels.activation.bench.cases,
    "rotary": octavo_kernels.rotary.bench.cases,
    "kv_store": octavo_kernels.kv_store.bench.cases,
    "qkv_rope_store": octavo_kernels.qkv_rope_store.bench.cases,
    "paged_attention": octavo_kernels.paged_attention.bench.cases,
    "linear": octavo_kernels.linear.bench.cases,
    "moe": octavo_kernels.moe.bench.cases,
    "sampling": octavo_kernels.sampling.bench.cases,
    "token_mask": octavo_kernels.token_mask.bench.cases,
    "log_norm": octavo_kernels.log_norm.bench.cases,
}
"""Cases by op."""


def run(ops: list[str], device: str, size: Size, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure ops until the time is up; a failing case is reported, and the others still run."""
    begin = time.monotonic()
    bench = Bench(device, rounds, size, torch.float32 if device == "cpu" else torch.bfloat16)
    ceilings = bench.ceilings()
    sys.stdout.write(
        f"{_machine(device)}: copying {ceilings.gb_per_s:.1f} GB/s, products {ceilings.tflop_per_s:.2f} TFLOP/s\n"
    )
    results: list[dict[str, Any]] = []
    for op in ops:
        for case in _guarded(op, CASES[op](bench), results):
            if time.monotonic() - begin > seconds:
                results.append({"op": op, "shape": case.shape, "error": "the time is up"})
                break
            try:
                found = bench.measure(case, ceilings)
            except Exception as error:  # one failing kernel must not end the run
                results.append({"op": case.op, "shape": case.shape, "error": repr(error)})
                sys.stdout.write(f"{case.op} {case.shape}: {error!r}\n")
                continue
            results.append(asdict(found))
            sys.stdout.write(_line(found))
    return {"machine": _machine(device), "torch": torch.__version__, "ceilings": asdict(ceilings), "results": results}


def _guarded(op: str, cases: Iterator[Case], results: list[dict[str, Any]]) -> Iterator[Case]:
    try:
        yield from cases
    except Exception as error:
        results.append({"op": op, "shape": "", "error": repr(error)})
        sys.stdout.write(f"{op}: {error!r}\n")


def _line(found: Measured) -> str:
    rivals = ", ".join(f"{name} {us:.1f} us" for name, us in found.rivals.items())
    return (
        f"{found.op:16} {found.shape:24} {found.microseconds:10.1f} us {found.gb_per_s:8.1f} GB/s "
        f"{found.tflop_per_s:8.2f} TFLOP/s {found.of_ceiling:6.1%} of the ceiling  {rivals}\n"
    )


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    native = library()
    return f"CPU, {torch.get_num_threads()} threads, {native.level if native else 'no native library'}"


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each case, and everything as JSON in the last one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default=",".join(CASES), help=f"some of {', '.join(CASES)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="shapes that take no time: for a test of this file")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--seconds", type=float, default=300, help="after which no new case begins")
    parser.add_argument("--out", type=Path, help="a folder for kernels.json")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
        if native := library():
            native.set_threads(options.threads)
    size = SIZES["tiny" if options.tiny else "cpu" if options.device == "cpu" else "gpu"]
    report = json.dumps(run(options.op.split(","), options.device, size, options.rounds, options.seconds))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "kernels.json").write_text(report)
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main()
