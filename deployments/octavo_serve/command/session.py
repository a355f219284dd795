"""The processes of a server: all are in one session, so ending the session ends them and nobody else's."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

LEAVE_SECONDS = 10.0  # for Ray to leave by itself: it takes 1 to 2 s


def end_session(process: subprocess.Popen[str]) -> None:
    """End a session's leader and everything in the session: politely, then for certain."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LEAVE_SECONDS)
    patience = time.monotonic() + 3.0
    while session_members(process.pid) and time.monotonic() < patience:
        time.sleep(0.05)
    kill_session(process.pid)
    process.wait()


def kill_session(session: int) -> None:
    """Kill every process of a session but this one, until none is left (one may start another meanwhile)."""
    while left := [pid for pid in session_members(session) if pid != os.getpid()]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def session_members(session: int) -> list[int]:
    """Live processes of a session (Linux; elsewhere only its leader's process group is known)."""
    if not Path("/proc/self/stat").exists():
        return [session] if _alive(session) else []
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid pgrp session ...; the name may hold spaces and brackets
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
            if int(sid) == session and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end_with_reader(pipe: int, folder: Path, before: Callable[[], object]) -> None:
    """Watch a pipe that this session's leader writes to; once nobody reads it any more, nothing is left of the session.

    The reader is `octavo serve`, which ends the session itself: unless it was killed.

    Args:
        pipe: its writing end.
        folder: removed in the end.
        before: called first.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(pipe, 0)  # POLLERR, the end of the last reader, is always reported
        poll.poll()
        with contextlib.suppress(Exception):
            before()
        kill_session(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="octavo-lifeline", daemon=True).start()
