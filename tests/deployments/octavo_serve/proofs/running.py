"""What the proofs share: a server of their own, or one that runs, and its processes."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from octavo_serve.command.serve_command import free_block, session_members
from octavo_serve.config.config_file import read_plan


def parser(text: str | None) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("config", type=Path, help="what to serve; its first model is asked")
    options.add_argument("--port", type=int, help="of a server that runs already, with this config, on this machine")
    options.add_argument("--seed", type=int, default=1)
    return options


class RunningServer:
    """`octavo serve CONFIG` for the length of a `with` block.

    Attributes:
        url: of the server.
        model: the first one it serves.
    """

    def __init__(self, config: Path, port: int | None) -> None:
        self._mine = port is None
        self.port = port or free_block(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.model = read_plan(config).models[0]
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RunningServer:
        if self._mine:
            command = [
                sys.executable,
                "-m",
                "octavo_serve.command.cli",
                "serve",
                str(self._config),
                "--port",
                str(self.port),
            ]
            environment = {"RAY_TMPDIR": tempfile.mkdtemp(prefix="oct"), **os.environ}
            self._process = subprocess.Popen(command, env=environment)
            while not self._answers():
                if self._process.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.5)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        return False

    def shards(self) -> list[int]:
        """Process ids of the shards that serve: not of those that still start."""
        return [pid for pid, name in self.replicas() if name.startswith("shard-") and ".initialize" not in name]

    def replicas(self) -> list[tuple[int, str]]:
        """(process id, deployment.method) of every replica of this server; the method is there while one runs."""
        found = []
        for pid in session_members(self._session()):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")
                if command.startswith("ray::ServeReplica:"):
                    found.append((pid, command.rpartition(":")[2]))
        return found

    def processes(self) -> list[int]:
        """All that `octavo serve` has started, and itself."""
        parent = [] if self._process is None else [self._process.pid]
        return [*parent, *session_members(self._session())]

    def _session(self) -> int:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command = path.read_text().split("\0")
                if "octavo_serve.command.cli" in command and str(self.port) in command:
                    (child,) = Path(f"/proc/{path.parent.name}/task/{path.parent.name}/children").read_text().split()
                    return int(child)
        raise RuntimeError(f"no octavo serve --port {self.port} runs on this machine")


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """A metric's sum over its labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))
