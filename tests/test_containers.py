"""What images and compose.yaml are made of. No container engine is needed: images themselves are built by hand."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from octavo_serve.command.front import haproxy_binary
from octavo_serve.config.config_file import read_plan
from octavo_serve.ports import free_block

ROOT = Path(__file__).parents[1]
CONTAINERS = ROOT / "containers"

# ---- the Dockerfile -------------------------------------------------------------------------------------------------


def instructions() -> list[list[str]]:
    text = re.sub(r"^\s*#.*\n", "", (CONTAINERS / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def test_whatever_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for name, *words in instructions()
        if name == "COPY" and "--from" not in words[0]
        for source in words[:-1]
    ]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert {source.partition("/")[0] for source in copied} == sent


def test_links_of_the_packages_lead_to_what_the_wheel_is_built_beside() -> None:
    copied = set[str]()
    for name, *words in instructions():
        if name == "RUN" and "wheel" in words:
            break
        copied |= set(words[:-1]) if name == "COPY" else set()
    links = [path for folder in copied for path in (ROOT / folder).rglob("*") if path.is_symlink()]
    assert {path.resolve().relative_to(ROOT).parts[0] for path in links} <= copied


def test_images_run_as_a_number_that_is_not_root() -> None:
    values = dict(words[0].split("=", 1) for name, *words in instructions() if name == "ARG" and "=" in words[0])
    for user in (words[0] for name, *words in instructions() if name == "USER"):
        assert re.fullmatch(r"0|[1-9]\d{3,}:[1-9]\d{3,}", user.replace("${OWNER}", values["OWNER"]))
    assert [words[0] for name, *words in instructions() if name == "USER"][-1] != "0"


def test_the_image_serves_its_config() -> None:
    command = next(words for name, *words in instructions() if name == "CMD")
    assert command == ["[/etc/octavo/serve.yaml]"]
    plan = read_plan(CONTAINERS / "serve.yaml")
    assert plan.host == "0.0.0.0"
    assert [key.file for key in plan.settings[0].api_keys[:2]] == [
        "/run/secrets/octavo_keys",
        "/run/secrets/octavo_metrics_key",
    ]


def test_requirements_are_the_packages() -> None:
    command = [sys.executable, CONTAINERS / "requirements.py", "serve,gpu"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {re.split(r"[\[>=<]", line)[0] for line in lines} > {"torch", "numpy", "ray", "httpx", "triton"}


# ---- what runs in a container ---------------------------------------------------------------------------------------


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int]]]:
    """A server's URL, and the status with which it answers."""
    status = [200]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/health", status
        server.shutdown()


def test_a_container_is_healthy_while_a_model_can_answer(answering: tuple[str, list[int]]) -> None:
    url, status = answering

    def healthy(url: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-IS", CONTAINERS / "healthy.py"]
        environment = os.environ | {"OCTAVO_HEALTH": url, "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    assert healthy(url).returncode == 0
    status[0] = 503
    assert "503" in healthy(url).stderr
    assert healthy(f"http://127.0.0.1:{free_block(1)}/health").returncode == 1


@pytest.mark.skipif(haproxy_binary() is None, reason="Ray brings HAProxy on Linux alone")
def test_haproxy_is_started_as_octavo_serve_starts_it(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    waits = "".join(f"    timeout {name} 5s\n" for name in ("connect", "client", "server"))
    config.write_text(f"defaults\n    mode http\n{waits}frontend a\n    bind unix@{tmp_path}/a.sock\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "RAY_SERVE_HAPROXY_BINARY_PATH": str(CONTAINERS / "haproxy")}
    command = [CONTAINERS / "haproxy", "-c", "-f", config]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "timeout http-request 10s" in config.read_text()


def test_secrets_are_made_once_and_are_their_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "containers"
    folder.mkdir()
    script = Path(folder, "make_secrets.sh")
    script.write_text((CONTAINERS / "make_secrets.sh").read_text())

    def made() -> dict[str, str]:
        subprocess.run(["sh", script], check=True, capture_output=True)
        return {file.name: file.read_text() for file in (folder / "secrets").iterdir()}

    first = made()
    assert set(first) == set(document()["secrets"])
    assert all(re.fullmatch(r"[\w-]{43}", text) for text in first.values())
    assert len(set(first.values())) == 3
    assert made() == first
    assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o700


# ---- compose.yaml ---------------------------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    """The file with the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "compose.yaml").read_text())
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def validate(found: dict[str, Any]) -> None:
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(found))


def test_the_file_is_valid_and_a_mistake_is_found() -> None:
    validate(document())
    for wrong in ({"read_onli": True}, {"stop_grace_period": "75 parsecs"}, {"ports": [{"target": "x"}]}):
        found = document()
        found["services"]["octavo"] |= wrong
        with pytest.raises(ValueError, match="octavo"):
            validate(found)


@pytest.mark.parametrize("name", ["octavo", "prometheus", "grafana"])
def test_a_service_is_closed(name: str) -> None:
    service = document()["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert ":latest" not in service["image"]


def test_passwords_and_keys_come_from_files() -> None:
    found = document()
    environment = found["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_password"
    assert not [name for name in environment if name.endswith(("PASSWORD", "KEY", "TOKEN"))]
    ignored = (ROOT / ".gitignore").read_text() + (ROOT / ".dockerignore").read_text()
    assert ignored.count("containers/secrets") == 2


def test_a_stop_waits_for_running_requests() -> None:
    service = document()["services"]["octavo"]
    grace = float(service["command"][service["command"].index("--grace") + 1])
    assert grace + 10 < float(service["stop_grace_period"].removesuffix("s"))


def test_what_is_mounted_from_the_repository_is_there() -> None:
    volumes = [volume for service in document()["services"].values() for volume in service["volumes"]]
    mounted = [volume.partition(":")[0] for volume in volumes if volume.startswith("./")]
    assert len(mounted) == 4
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def test_prometheus_asks_this_server_with_its_key() -> None:
    service = document()["services"]["prometheus"]
    (job,) = yaml.safe_load((CONTAINERS / "prometheus.yaml").read_text())["scrape_configs"]
    assert Path(job["authorization"]["credentials_file"]).name in service["secrets"]
    assert job["static_configs"] == [{"targets": [f"octavo:{read_plan(CONTAINERS / 'serve.yaml').port}"]}]
