from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from octavo_loadtest import child
from octavo_loadtest.errors import LoadTestError, Refused
from octavo_loadtest.server import find_model

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
    url = f"http://127.0.0.1:{port}"
    with child.running([sys.executable, "-c", SERVER, str(port)], log, 30, lambda: find_model(url, {})) as model:
        assert model == "fake"
        other = int(log.read_text().split()[0])
        os.kill(other, 0)
    with pytest.raises(ConnectionRefusedError), socket.socket() as probe:
        probe.connect(("127.0.0.1", port))
    stat = Path(f"/proc/{other}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_server_that_never_answers_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('loading', flush=True); import time; time.sleep(60)"]
    with (
        pytest.raises(LoadTestError, match=r"no answer after 1 s \(not yet\):\nloading"),
        child.running(command, tmp_path / "log", 1, lambda: fail(LoadTestError("not yet"))),
    ):
        pass


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(LoadTestError, match="cannot be started"),
        child.running(["no-such-server"], tmp_path / "log", 1, lambda: None),
    ):
        pass


def fail(error: Exception) -> None:
    raise error


SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_what_is_asked_is_asked_until_it_is_answered(tmp_path: Path) -> None:
    """A server that lists its models is none yet that runs them: the block begins with a real answer."""
    answers = iter([LoadTestError("503: loading"), LoadTestError("503: loading"), None])

    def ask() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "a word"

    with child.running(SLEEPER, tmp_path / "log", 30, ask) as answer:
        assert answer == "a word"


def test_a_refusal_is_not_waited_for(tmp_path: Path) -> None:
    with (
        pytest.raises(Refused, match="401"),
        child.running(SLEEPER, tmp_path / "log", 900, lambda: fail(Refused("401"))),
    ):
        pass
