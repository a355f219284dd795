"""Times kernels: cases of ops, on shapes of a size, beside what the machine can do.

First the ceilings are measured: copying a large tensor (GB/s) and multiplying large matrices (TFLOP/s). A case states
the bytes it must move and the operations it must do. The larger of the two times at the ceilings is the least it can
take; `of_ceiling` is that time divided by the measured one. An op and its rivals run in turns, so that other work on
the machine slows all of them alike; results are medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 16  # tokens per KV block


@dataclass(frozen=True, slots=True)
class Size:
    """Shapes of the cases: an 8B Llama's layers on a GPU, smaller ones on a CPU, tiny ones in tests."""

    hidden: int
    inner: int
    heads: tuple[int, int]
    dim: int
    rows: tuple[int, ...]  # of activations: decoding ones, and a chunk of prompts
    decodes: tuple[tuple[int, int], ...]  # (sequences, context) of attention
    prefill: int  # tokens of a prompt
    copy_bytes: int
    matmul: int


SIZES = {
    "gpu": Size(4096, 14336, (32, 8), 128, (1, 16, 64, 256, 2048), ((1, 8192), (64, 2048), (256, 1024)), 8192,
                2**30, 8192),
    "cpu": Size(2048, 4096, (16, 4), 64, (1, 16, 64, 512), ((1, 4096), (16, 1024)), 512, 2**27, 1024),
    "tiny": Size(64, 96, (4, 2), 16, (1, 8), ((1, 40), (3, 20)), 24, 2**16, 64),
}  # fmt: skip


@dataclass(slots=True)
class Case:
    """One op on one shape.

    Attributes:
        run: runs the op once.
        moved: least bytes that must be read and written.
        operations: floating-point operations, two for a multiplication with its addition.
        rivals: name -> another way to compute the same.
    """

    op: str
    shape: str
    run: Callable[[], object]
    moved: int
    operations: int = 0
    rivals: dict[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the rounds."""

    op: str
    shape: str
    microseconds: float
    gb_per_s: float
    tflop_per_s: float
    of_ceiling: float
    rivals: dict[str, float]  # microseconds


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured limits of the machine."""

    gb_per_s: float
    tflop_per_s: float


class Bench:
    """Times cases on one device.

    Args:
        rounds: how often each case is timed.
    """

    def __init__(self, device: str, rounds: int, size: Size, dtype: torch.dtype) -> None:
        self.device, self.rounds, self.size, self.dtype = device, rounds, size, dtype
        # larger than any cache: writing it between two runs evicts everything else
        self._flush = torch.empty(size.copy_bytes // 4, dtype=torch.uint8, device=device)

    def ceilings(self) -> Ceilings:
        """Bandwidth of a copy (read and written bytes), and rate of a product of square matrices of the cases' type."""
        source = torch.empty(self.size.copy_bytes, dtype=torch.uint8, device=self.device)
        target, n = torch.empty_like(source), self.size.matmul
        a, b = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))
        copy, product = self._best([lambda: target.copy_(source), lambda: a @ b])
        return Ceilings(2 * source.nbytes / copy / 1e9, 2 * n**3 / product / 1e12)

    def measure(self, case: Case, ceilings: Ceilings) -> Measured:
        own, *others = self._medians([case.run, *case.rivals.values()])
        least = max(case.moved / ceilings.gb_per_s / 1e9, case.operations / ceilings.tflop_per_s / 1e12)
        return Measured(
            op=case.op,
            shape=case.shape,
            microseconds=own * 1e6,
            gb_per_s=case.moved / own / 1e9,
            tflop_per_s=case.operations / own / 1e12,
            of_ceiling=least / own,
            rivals={name: seconds * 1e6 for name, seconds in zip(case.rivals, others, strict=True)},
        )

    def _medians(self, runs: list[Callable[[], object]]) -> list[float]:
        return [statistics.median(column) for column in zip(*self._rounds(runs), strict=True)]

    def _best(self, runs: list[Callable[[], object]]) -> list[float]:
        return [min(column) for column in zip(*self._rounds(runs), strict=True)]

    def _rounds(self, runs: list[Callable[[], object]]) -> list[list[float]]:
        for run in runs:  # compiles, packs, allocates
            run()
        return [[self._seconds(run) for run in runs] for _ in range(self.rounds)]

    def _seconds(self, run: Callable[[], object]) -> float:
        self._flush.zero_()
        if self.device == "cpu":
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        # half a millisecond in which launches queue up, so that the GPU never waits for them
        torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def noise(bench: Bench, *shape: int) -> Tensor:
    """A tensor of random values on the bench's device, of its type."""
    return torch.randn(shape, device=bench.device, dtype=bench.dtype)


def for_all_rows(case: Callable[[Bench, int], Case], bench: Bench) -> Iterator[Case]:
    """The case for each number of rows in the bench's size."""
    return (case(bench, rows) for rows in bench.size.rows)
