"""The processes of a server are all in one session: ending the session ends them and no others."""

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

LEAVE_SECONDS = 10.0  # time for Ray to exit by itself, which takes 1 to 2 s


def end_session(process: subprocess.Popen[str]) -> None:
    """End a session's leader and all its processes: with SIGTERM first, then with SIGKILL."""
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
    """Kill every process of a session except this one; repeat until none is left, because a process may start
    others."""
    while left := [pid for pid in session_members(session) if pid != os.getpid()]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def session_members(session: int) -> list[int]:
    """Live processes of a session (on Linux; elsewhere only those of its leader's process group)."""
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
    """Watch a pipe that this session's leader writes to, and end the whole session once its reader is gone.

    The reader is `octavo serve`. It normally ends the session itself, but cannot if it was killed.

    Args:
        pipe: the writing end.
        folder: removed at the end.
        before: called first.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(pipe, 0)  # POLLERR is always reported, when the last reader closes
        poll.poll()
        with contextlib.suppress(Exception):
            before()
        kill_session(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="octavo-lifeline", daemon=True).start()
