"""Machines to plan for: memory, bandwidth and matrix rates of common GPUs and of this machine's CPU.

Rates are for DENSE matrices. NVIDIA (since Ampere) and AMD (since MI300) advertise rates for 2:4 structured sparsity,
which are twice the dense ones and which no ordinary checkpoint can use. Where a data sheet prints only the sparse
figure, half of it is taken here.

Memory is what the driver reports in MiB (`nvidia-smi`), which is less than advertised where ECC uses a part. `link` is
one direction of the connection between the GPUs of a node: NVLink, Infinity Fabric or PCIe.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from octavo.config import unknown_key
from octavo.errors import ConfigError

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Machine:
    """One accelerator (or this CPU).

    Attributes:
        memory: bytes.
        bandwidth: memory bandwidth, bytes per second.
        rates: operations per second with dense matrices, by type; a multiply-add counts as two. A missing type is not
            supported.
        link: bandwidth to the node's other devices, bytes per second in one direction.
        most: devices in one node; no larger tensor-parallel group is planned for.
        overhead: bytes that plans leave free: an allowance for the driver's context, libraries and their workspaces.
        source: where the figures come from.
    """

    name: str
    memory: int
    bandwidth: float
    rates: dict[str, float]
    link: float
    source: str
    most: int = 8
    overhead: int = 768 * _MIB  # an assumption, not a measurement: contexts differ with driver and GPU

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's CPU."""
        return self.name == "cpu"

    def rate(self, kind: str) -> float | None:
        """Operations per second in this type, or None if the machine does not support it."""
        return self.rates.get(kind)


def _gpu(
    name: str, mib: int, gbps: float, half: float, single: float, link: float, source: str, **more: float
) -> Machine:
    """Rates are in tera-operations per second; `more` holds fp8 and int8; bfloat16=0 if only float16 is fast."""
    rates = {"float32": single, "float16": half, "bfloat16": half} | more
    return Machine(
        name, mib * _MIB, gbps * 1e9, {k: v * 1e12 for k, v in rates.items() if v}, link * 1e9, f"NVIDIA {source}"
    )


_GPUS = [
    _gpu("t4", 15360, 320, 65, 8.1, 16, "T4 data sheet", int8=130, bfloat16=0),
    _gpu("v100-32gb", 32768, 900, 125, 15.7, 150, "V100 data sheet (SXM2)", bfloat16=0),
    _gpu("a10", 23028, 600, 125, 31.2, 32, "A10 data sheet", int8=250),
    _gpu("l4", 23034, 300, 121, 30.3, 32, "L4 data sheet, halved: it prints sparse rates", fp8=242.5, int8=242.5),
    _gpu("rtx3090", 24576, 936, 71, 35.6, 32, "Ampere GA102 whitepaper, float32 accumulation", int8=284),
    _gpu("rtx4090", 24564, 1008, 165.2, 82.6, 32, "Ada whitepaper, float32 accumulation", fp8=330.3, int8=660.6),
    _gpu("l40s", 46068, 864, 362, 91.6, 32, "L40S data sheet", fp8=733, int8=733),
    _gpu("a100-40gb", 40960, 1555, 312, 19.5, 300, "A100 data sheet (SXM)", int8=624),
    _gpu("a100-80gb", 81920, 2039, 312, 19.5, 300, "A100 data sheet (SXM)", int8=624),
    _gpu("h100", 81559, 3350, 989.5, 67, 450, "H100 data sheet (SXM), halved", fp8=1979, int8=1979),
    _gpu("h200", 143771, 4800, 989.5, 67, 450, "H200 data sheet (SXM), halved", fp8=1979, int8=1979),
    _gpu("b200", 183359, 8000, 2250, 75, 900, "HGX B200 data sheet, halved", fp8=4500, int8=4500),
    Machine(
        "mi300x", 192 * 2**30, 5.3e12,
        {"float32": 163.4e12, "float16": 1307.4e12, "bfloat16": 1307.4e12, "fp8": 2614.9e12, "int8": 2614.9e12},
        448e9, "AMD MI300X data sheet, its figures without sparsity",
    ),
]  # fmt: skip
MACHINES = {machine.name: machine for machine in _GPUS}


def find_machine(name: str) -> Machine:
    """The machine of this name; "cpu" measures this machine, which takes about a second.

    Raises:
        ConfigError: unknown, naming the nearest that exists.
    """
    if name.lower() == "cpu":
        return this_cpu()
    if name.lower() not in MACHINES:
        raise ConfigError(unknown_key(name, [*MACHINES, "cpu"], "machine"))
    return MACHINES[name.lower()]


def this_cpu() -> Machine:
    """This machine: its memory (or its container's), and its bandwidth and matrix rates, measured now.

    Bandwidth is measured by summing 256 MiB, rates by multiplying two 1024 x 1024 matrices. The best of several tries
    counts, because other processes may use the machine; on a busy machine the figures are too low.
    """
    import torch

    big = torch.ones(2**26)
    bandwidth = 4 * big.numel() / _best_seconds(big.sum)
    rates = {}
    for kind in (torch.float32, torch.bfloat16):
        square = torch.ones(1024, 1024, dtype=kind)
        rates[str(kind).removeprefix("torch.")] = 2 * 1024**3 / _best_seconds(partial(torch.mm, square, square))
    source = f"measured now with {torch.get_num_threads()} threads"
    return Machine("cpu", _memory(), bandwidth, rates, math.inf, source, most=1, overhead=_CPU_OVERHEAD)


_CPU_OVERHEAD = 256 * _MIB  # Python, torch 2.13 and the engine's modules: 227 MiB resident on Linux


def _best_seconds(work: Callable[[], object], budget: float = 0.3) -> float:
    """Seconds of the fastest run, of as many as fit into `budget` seconds, but at least two."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < budget:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _memory() -> int:
    """Bytes of memory, or the control group's limit if that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    given = [int(text) for file in limits if file.is_file() and (text := file.read_text().strip()).isdigit()]
    return min([physical, *given])
