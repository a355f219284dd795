"""A server for the commands that ask one, the API over a socket with a scripted model; and a terminal to type in."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.service import Service
from octavo_serve.http.app import Backend, http_app
from octavo_serve.ports import free_block


def as_under_serve(app: Any) -> Any:
    """The application, cancelled for a client that leaves."""

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())

        async def received() -> Any:
            return messages.pop(0) if messages else await asyncio.sleep(3600)

        both = asyncio.create_task(app(scope, received, send)), asyncio.create_task(receive())
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)

    return asked


Serving = Callable[..., "contextmanager[str]"]


Serving = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def serving(service: Service, backend: Backend) -> Serving:
    """Starts the API on a port of its own; `key` is one that requests need then. Yields its URL."""

    @contextmanager
    def start(key: str | None = None) -> Iterator[str]:
        keys = Keys([KnownKey(Caller("tester"), sha256(key.encode()).digest())]) if key else None
        app, port = as_under_serve(http_app(service, backend, Access(Rules(keys)))), free_block(1)
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)

    return start


@dataclass
class Terminal:
    """`octavo` as somebody sees it who sits at a terminal."""

    process: subprocess.Popen[bytes]
    screen: int  # the terminal's end of the pty
    said: str = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, words: str, seconds: float = 60) -> str:
        """What comes until it says this; the rest is for the next call."""
        end = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < end, self.said
            if select.select([self.screen], [], [], 0.2)[0]:
                self.said += os.read(self.screen, 65536).decode(errors="replace")
        before, _, self.said = self.said.partition(words)
        return before + words

    def interrupt(self, words: str) -> str:
        """Ctrl-C until it says this: `input` sleeps on where one came just before it began to wait."""
        for _ in range(11):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.until(words, 5)
        return self.until(words, 5)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts `octavo ARGUMENTS` in a terminal of 80 columns and 24 lines, with a home folder of its own."""
    opened: list[Terminal] = []

    def start(*arguments: str, **environment: str) -> Terminal:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        command = [sys.executable, "-m", "octavo_serve.command.cli", *arguments]
        hidden = ("RAY_", "OPENAI_", "OCTAVO_API", "NO_COLOR", "COLUMNS", "LINES")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        kept |= {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", **environment}
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=kept, cwd=tmp_path, preexec_fn=_take_terminal
        )
        os.close(theirs)
        opened.append(Terminal(process, ours))
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.screen)


def _take_terminal() -> None:
    """So that Ctrl-C becomes a signal to this process."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
