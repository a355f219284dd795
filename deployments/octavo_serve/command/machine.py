"""What this machine has, found without loading torch or Ray."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path


def version(package: str) -> str | None:
    """An installed package's version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for; None for a CPU build, or without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^cuda\b.*= *'([^']+)'", Path(spec.origin).with_name("version.py").read_text(), re.MULTILINE)
    return found and found[1]


def gpus() -> list[str]:
    """Devices of NVIDIA's that a process started here may see."""
    devices = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return devices
    return devices[: len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])]


def num_gpus() -> int:
    """GPUs that torch could use."""
    return len(gpus()) if torch_cuda() else 0


def memory_bytes() -> tuple[int, int] | None:
    """Memory of the machine, or of this process's control group, and what of it is free; None where nobody says."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    limit, used = (_number(Path("/sys/fs/cgroup", f"memory.{name}")) for name in ("max", "current"))
    if limit is None or used is None or limit >= total:
        return total, free
    return limit, min(free, limit - used)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
