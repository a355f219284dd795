"""How fast packed weights are multiplied, beside how fast the machine reads memory.

    python -m octavo_kernels.linear.bench --formats Q4_1,BF16 --rows 1,16,64,512 --shape 49152x1536 --threads 2

Every round multiplies once and reads the same bytes once, so that a neighbour on the machine slows both alike; medians
over the rounds are printed, and as JSON in the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from octavo_kernels.checksum import checksum
from octavo_kernels.linear import FORMATS, PackedWeight, linear
from octavo_kernels.native.library import library


def main() -> None:
    """Print a line for each format and number of rows."""
    arguments = _arguments()
    native = library()
    if native is None:
        raise SystemExit("the CPU kernels are not there: install a C++ compiler")
    native.set_threads(arguments.threads)
    n, k = map(int, arguments.shape.split("x"))
    results = []
    for name in arguments.formats.split(","):
        weight = PackedWeight.empty(name, n, k)
        weight.data[:] = np.random.default_rng(0).integers(
            0, 60, weight.data.shape, np.uint8
        )  # any bytes are codes; below 60 no float is infinite
        for rows in map(int, arguments.rows.split(",")):
            results.append(measure(weight, rows, exact=arguments.exact, rounds=arguments.rounds))
            sys.stdout.write(_LINE.format(**results[-1]))
    report = {"level": native.level, "threads": native.threads, "shape": [n, k], "results": results}
    sys.stdout.write(json.dumps(report) + "\n")


def measure(weight: PackedWeight, rows: int, *, exact: bool, rounds: int) -> dict[str, Any]:
    """Medians: milliseconds for one product, weights read in GB/s, operations (2 R N K) in GOP/s, plain reading."""
    x, data, flat = torch.randn(rows, weight.k), weight.data, weight.data.reshape(-1)
    times = [
        (
            _seconds(lambda: linear(x, weight, exact=exact)),
            _seconds(lambda: checksum(flat)),
        )
        for _ in range(rounds + 1)
    ]
    product, read = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return {
        "format": weight.format,
        "rows": rows,
        "ms": product * 1e3,
        "gb_per_s": data.size / product / 1e9,
        "read_gb_per_s": data.size / read / 1e9,
        "gop_per_s": 2 * rows * weight.n * weight.k / product / 1e9,
    }


_LINE = "{format:5} {rows:4} rows {ms:8.2f} ms {gb_per_s:6.1f} GB/s (read {read_gb_per_s:.1f}) {gop_per_s:6.0f} GOP/s\n"


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="Q4_1,Q8_0,BF16", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--rows", default="1,4,16,64,512")
    parser.add_argument("--shape", default="49152x1536", help="outputs x inputs of the matrix; larger than the caches")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--exact", action="store_true", help="float32 throughout")
    return parser.parse_args()


if __name__ == "__main__":
    main()
