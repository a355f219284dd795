"""Runs a server as a child process in a session of its own, and ends it with all processes that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.server import find_model

GRACE = 30.0  # s to end by itself


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path, timeout: float) -> Iterator[None]:
    """Run a server while the block runs; the block begins when /v1/models answers.

    Raises:
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
            _wait(process, url, log, timeout)
            yield
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            raise LoadTestError(f"the server ended with exit code {process.returncode}:\n{_tail(log)}")
        try:
            find_model(url, {})
            return
        except LoadTestError:
            if time.monotonic() > deadline:
                raise LoadTestError(f"{url} does not answer after {timeout:g} s:\n{_tail(log)}") from None
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
