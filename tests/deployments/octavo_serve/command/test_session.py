"""Sessions of real processes: what is ended is theirs, all of it, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from octavo_serve.command.session import end_session, kill_session, session_members

SLEEP = "import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); {SLEEP}"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
{SLEEP}
"""
LEADER = f"""
import os, subprocess, sys
from pathlib import Path
from octavo_serve.command.session import end_with_reader
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
folder = Path(sys.argv[1])
end_with_reader(1, folder, lambda: (folder.parent / "before").touch())
print(child.pid, flush=True)
{SLEEP}
"""


def start(program: str, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """The leader of a new session, and a child of it."""
    leader = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout is not None
    return leader, int(leader.stdout.readline())


def test_a_session_ends_with_a_child_that_will_not_go() -> None:
    leader, child = start(PARENT)
    other, its_child = start(PARENT)
    with leader, other:
        assert set(session_members(leader.pid)) == {leader.pid, child}
        end_session(leader)
        assert session_members(leader.pid) == []
        assert set(session_members(other.pid)) == {other.pid, its_child}
        end_session(other)


def test_this_process_is_not_in_another_session_and_is_not_killed_in_its_own() -> None:
    assert os.getpid() in session_members(os.getsid(0))
    assert session_members(2**22 + 1) == []
    kill_session(2**22 + 1)


def test_nothing_is_left_when_the_reader_dies(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    leader, _ = start(LEADER, str(folder))
    assert leader.stdout is not None
    leader.stdout.close()
    assert leader.wait(60) == 1
    assert session_members(leader.pid) == []
    assert (tmp_path / "before").exists()
    assert not folder.exists()
