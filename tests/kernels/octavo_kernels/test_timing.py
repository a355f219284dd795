"""What a measurement is held against: the larger of two least times at the machine's ceilings."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels.timing import SIZES, Bench, Case, Ceilings

CEILINGS = Ceilings(gb_per_s=10.0, tflop_per_s=2.0)


class Exact(Bench):
    """Every run takes what it returns, in seconds."""

    def _seconds(self, run):
        return run()


@pytest.fixture
def bench() -> Bench:
    return Exact("cpu", 3, SIZES["tiny"], torch.float32)


@pytest.mark.parametrize(
    ("moved", "operations", "least"),
    [(10**10, 0, 1.0), (0, 2 * 10**12, 1.0), (10**10, 10**12, 1.0), (10**9, 2 * 10**12, 1.0)],
)
def test_the_slower_of_moving_and_computing_is_the_ceiling(bench, moved, operations, least):
    found = bench.measure(Case("op", "shape", lambda: 4.0, moved, operations), CEILINGS)
    assert found.of_ceiling == pytest.approx(least / 4)
    assert (found.gb_per_s, found.tflop_per_s) == (moved / 4 / 1e9, operations / 4 / 1e12)
    assert found.microseconds == 4e6


def test_times_are_medians_and_rivals_run_in_turns(bench):
    ran = []

    def timed(name, seconds):
        left = iter([9.0, *seconds])  # the first run only warms up
        return lambda: ran.append(name) or next(left)

    case = Case("op", "shape", timed("own", [1.0, 3.0, 2.0]), 0, rivals={"torch": timed("torch", [5.0, 4.0, 6.0])})
    found = bench.measure(case, CEILINGS)
    assert (found.microseconds, found.rivals) == (2e6, {"torch": 5e6})
    assert ran == ["own", "torch"] * 4


def test_ceilings_are_the_best_round():
    found = Bench("cpu", 2, SIZES["tiny"], torch.float32).ceilings()
    assert found.gb_per_s > 0
    assert found.tflop_per_s > 0
