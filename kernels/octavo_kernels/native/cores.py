"""How many cores a process may use, by its affinity and by its control groups' CPU quota.

A container with a quota of two cores on a machine of 64 sees all 64. More threads than the quota do not help: together
they use it up early in each period of 100 ms, and then all of them stop for the rest of the period, in the middle of a
step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
"""Where `proc` and the control groups are looked for."""


def available_cores() -> int:
    """Number of cores that this process may use, at least one; a quota is rounded down to whole cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(int, _quotas())]))


def _quotas() -> Iterator[float]:
    """The quota, in cores, of each of this process's control groups that has one."""
    for folder, form in _groups():
        try:
            yield from _read_v2(folder) if form == "cgroup2" else _read_v1(folder)
        except (OSError, ValueError, ArithmeticError):
            continue  # a group outside this container, or a kernel without quotas


def _read_v2(folder: Path) -> Iterator[float]:
    quota, period = (folder / "cpu.max").read_text().split()
    if quota != "max":
        yield int(quota) / int(period)


def _read_v1(folder: Path) -> Iterator[float]:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    if quota > 0:
        yield quota / int((folder / "cpu.cfs_period_us").read_text())


def _groups() -> Iterator[tuple[Path, str]]:
    """Folders of this process's control groups up to the root, and the type of their file system."""
    for line in _lines("proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mount = before.split()
        form, _, options = [*after.split(), "", "", ""][:3]
        if len(mount) < 5 or (form != "cgroup2" and (form != "cgroup" or "cpu" not in options.split(","))):
            continue
        own = PurePosixPath(_own_group(form))
        root, place = map(_unescaped, mount[3:5])
        folder = ROOT / place.lstrip("/")
        # Inside a container the path is often the host's, of which only the end, or nothing, is mounted.
        inner = own.relative_to(root) if own.is_relative_to(root) else PurePosixPath()
        for part in (inner, *inner.parents):
            yield folder / part, form


def _unescaped(path: str) -> str:
    """A path of mountinfo, which writes spaces and the like as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _own_group(form: str) -> str:
    for line in _lines("proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (number == "0" and not controllers) if form == "cgroup2" else "cpu" in controllers.split(","):
            return path
    return "/"


def _lines(file: str) -> list[str]:
    try:
        return (ROOT / file).read_text().splitlines()
    except OSError:
        return []
