from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from octavo_loadtest import child
from octavo_loadtest.errors import LoadTestError

SERVER = """
import os, signal, subprocess, sys
from octavo_loadtest.fake_server import Behaviour, FakeServer
import asyncio
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"
other = subprocess.Popen([sys.executable, "-c", stubborn])
print(other.pid, flush=True)
async def main():
    async with await FakeServer(Behaviour()).start(port=int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def test_everything_the_server_started_is_gone(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with child.running([sys.executable, "-c", SERVER, str(port)], f"http://127.0.0.1:{port}", log, 30):
        other = int(log.read_text().split()[0])
        os.kill(other, 0)
    with pytest.raises(ConnectionRefusedError), socket.socket() as probe:
        probe.connect(("127.0.0.1", port))
    stat = Path(f"/proc/{other}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_server_that_never_answers_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('loading', flush=True); import time; time.sleep(60)"]
    with (
        pytest.raises(LoadTestError, match=r"does not answer after 1 s:\nloading"),
        child.running(command, "http://127.0.0.1:9", tmp_path / "log", 1),
    ):
        pass


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(LoadTestError, match="cannot be started"),
        child.running(["no-such-server"], "http://127.0.0.1:9", tmp_path / "log", 1),
    ):
        pass
