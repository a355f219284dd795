"""Tests once, in a separate process, whether a compiled library works on this CPU.

Kernels run on CPUs on which nobody has tried them. A wrong result, an illegal instruction or a crash in the self-test
ends only the child process. The verdict is stored beside the library, in one file for each kind of CPU and
operating-system kernel, because several machines may share the cache; later starts read it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from octavo_kernels.native.build import BuildError
from octavo_kernels.native.cache import own_file

TIMEOUT = 120
"""Seconds until a self-test counts as hanging; it takes a fraction of one, but the machine may be busy."""

_TEST = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
for name in ("octavo_prepare", "octavo_self_test"):
    function = library[name]
    function.restype = ctypes.c_char_p
    if failed := function():
        sys.exit(failed.decode())
"""
_PASSED = "passed"


def check(library: Path) -> None:
    """Return if the library passed its self-test on this CPU, now or earlier.

    Raises:
        BuildError: it did not; the message names the file that remembers it.
    """
    verdict = library.with_suffix(f".{_machine()}.verdict")
    if (found := _read(verdict)) is None:
        found = _run(library)
        with suppress(OSError):  # a cache that was filled elsewhere may be read-only: the next process tries again
            _write(verdict, found)
    if found != _PASSED:
        raise BuildError(f"{library.name} fails its self-test on this CPU ({found}); delete {verdict} to test it again")


def _run(library: Path) -> str:
    """`_PASSED`, or the reason for the failure."""
    command = [sys.executable, "-I", "-S", "-c", _TEST, str(library)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no end after {TIMEOUT} s"
    if child.returncode < 0:
        return signal.strsignal(-child.returncode) or f"signal {-child.returncode}"
    return _PASSED if child.returncode == 0 else child.stderr.strip()[-1000:] or f"exit code {child.returncode}"


def _read(file: Path) -> str | None:
    try:
        return file.read_text() if own_file(file) else None
    except OSError:
        return None


def _write(file: Path, text: str) -> None:
    """Write a file atomically, because another process may read or write the same one. Other users may read root's."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as handle:
        handle.write(text)
        os.fchmod(handle.fileno(), 0o644)
    Path(handle.name).rename(file)


@functools.cache
def _machine() -> str:
    """A name for this kind of CPU, including its microcode and the running kernel."""
    lines = {key: value for key, value in _cpu_lines() if key in ("model name", "stepping", "microcode", "flags")}
    text = f"{platform.machine()} {platform.release()} {sorted(lines.items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cpu_flags() -> set[str]:
    """The CPU's features by /proc/cpuinfo's names; empty without that file."""
    return {flag for key, value in _cpu_lines() if key == "flags" for flag in value.split()}


@functools.cache
def _cpu_lines() -> list[tuple[str, str]]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return [(key.strip(), value) for key, _, value in (line.partition(":") for line in lines)]
