"""How fast packed weights are multiplied, beside how fast the machine reads memory.

    python -m octavo_kernels.linear.bench [--formats Q4_1,BF16] [--rows 1,16,64] [--shape 24576x1536] [--threads 2]

Every round runs each case once and reads the same bytes once; the medians over rounds are printed, so that a noisy
neighbour slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from octavo_kernels.linear import FORMATS, PackedWeight, linear
from octavo_kernels.linear.formats import FLOATS
from octavo_kernels.native import library

SMALL = {"Q4_1": 0.01, "BF16": 0.01}


def main() -> None:
    """Print one line for each format and number of rows, then all of them as JSON."""
    arguments = _arguments()
    native = library.library()
    assert native is not None
    native.set_threads(arguments.threads)
    n, k = map(int, arguments.shape.split("x"))
    results = []
    for name in arguments.formats.split(","):
        for rows in map(int, arguments.rows.split(",")):
            results.append(_measure(_random(name, n, k), rows, arguments.exact, arguments.rounds))
            _print(results[-1])
    sys.stdout.write(json.dumps({"level": native.level, "threads": native.threads, "results": results}) + "\n")


def _measure(weight: PackedWeight, rows: int, exact: bool, rounds: int) -> dict[str, float | str]:
    x = torch.randn(rows, weight.k)
    data, size = weight.data, weight.data.numel()
    cases: dict[str, Callable[[], object]] = {
        "linear": lambda: linear(x, weight, exact=exact),
        "read": lambda: library.call("linear_read", data, size),
    }
    times = {case: [_time(run) for _ in range(rounds)] for case, run in cases.items()}
    seconds, read = (statistics.median(times[case]) for case in cases)
    return {
        "format": weight.format,
        "rows": rows,
        "ms": seconds * 1e3,
        "gb_per_s": size / seconds / 1e9,
        "read_gb_per_s": size / read / 1e9,
        "gop_per_s": 2 * rows * weight.n * weight.k / seconds / 1e9,
    }
