"""Cases of the mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator

from octavo_kernels.moe import moe, route
from octavo_kernels.moe.reference import moe as moe_in_torch
from octavo_kernels.timing import Bench, Case, for_all_rows, noise

_EXPERTS, _CHOSEN = 32, 4


def _moe(bench: Bench, rows: int) -> Case:
    """Gated MLPs of an eighth of the width, four of 32 for each token; torch runs the experts one by one."""
    hidden, inner = bench.size.hidden, bench.size.inner // 8
    x, scores = noise(bench, rows, hidden), noise(bench, rows, _EXPERTS)
    gate_up, down = noise(bench, _EXPERTS * 2 * inner, hidden), noise(bench, _EXPERTS * hidden, inner)
    shares, experts = route(scores, _CHOSEN, normalise=True)
    touched = len(set(experts.flatten().tolist()))
    return Case(
        "moe",
        f"{rows} x {hidden}, {_CHOSEN} of {_EXPERTS} experts of {inner}",
        lambda: moe(x, shares, experts, gate_up, down, _EXPERTS),
        2 * x.nbytes + (gate_up.nbytes + down.nbytes) * touched // _EXPERTS,
        6 * rows * _CHOSEN * hidden * inner,
        {"torch": lambda: moe_in_torch(x, shares, experts, gate_up, down, _EXPERTS)},
    )


def cases(bench: Bench) -> Iterator[Case]:
    """For each number of rows."""
    return for_all_rows(_moe, bench)
