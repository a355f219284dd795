"""Runs a server as a child process in a session of its own, and ends it with all processes that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from octavo_loadtest.errors import LoadTestError, Refused

T = TypeVar("T")
GRACE = 30.0  # s to end by itself


@contextlib.contextmanager
def running(command: list[str], log: Path, timeout: float, ask: Callable[[], T]) -> Iterator[T]:
    """Run a server while the block runs, which begins when `ask` no longer raises, and gets what it returned.

    What is asked should be a real answer: a server lists its models before it can run one.

    Raises:
        Refused: `ask` raised it: the server answers, and never as it should.
        LoadTestError: it cannot be started, ends, or does not answer in time; the message has the end of its log.
    """
    with log.open("w") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise LoadTestError(f"{command[0]} cannot be started: {error}") from None
        try:
            yield _wait(process, log, timeout, ask)
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], log: Path, timeout: float, ask: Callable[[], T]) -> T:
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            raise LoadTestError(f"the server ended with exit code {process.returncode}:\n{_tail(log)}")
        try:
            return ask()
        except Refused:
            raise
        except LoadTestError as error:
            if time.monotonic() > deadline:
                raise LoadTestError(f"no answer after {timeout:g} s ({error}):\n{_tail(log)}") from None
            time.sleep(0.25)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the child to end, give it time, then end what is left of its session."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    patience = time.monotonic() + 5.0
    while (left := _session(process.pid)) and time.monotonic() < patience:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    process.wait()


def _session(leader: int) -> list[int]:
    """Live processes of a session (Linux); elsewhere the leader alone, if it lives."""
    if not Path("/proc/self/stat").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, 0)
            return [leader]
        return []
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid pgrp session ...; the name may hold spaces and brackets
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found
