"""Routing on a real server with two shards: what responses say of it, and a gateway that starts again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.recording import find_recordings
from octavo.rehearsal.replay import replay_file
from octavo_serve.command.serve_command import session_members

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def ask(server: Any, topic: str, **body: object) -> httpx.Headers:
    prompt = f"Everything that is known about {topic}, in the order of the alphabet. " * 6
    sent = {"model": "smollm2", "prompt": prompt, "max_tokens": 2, **body}
    answer = httpx.post(f"{server.url}/v1/completions", json=sent, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.headers


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.05)


def index_is_right(server: Any) -> bool:
    """Whether the gateway knows as many blocks of each shard as the idle shard has."""
    try:
        lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    except httpx.HTTPError:
        return False
    values = dict(line.rsplit(" ", 1) for line in lines if line and line[0] != "#")
    known = {key.split("{")[1]: value for key, value in values.items() if key.startswith("octavo_router_index_blocks{")}
    held = {key.split("{")[1]: value for key, value in values.items() if key.startswith("octavo_cached_blocks{")}
    return bool(held) and known == held and sum(map(float, held.values())) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_headers_tell_the_shard_the_reason_and_the_cache(server: Any, stream: bool) -> None:
    first = ask(server, f"lakes {stream}", stream=stream)
    again = ask(server, f"lakes {stream}", stream=stream)
    assert first["x-octavo-cached-tokens"] == "predicted=0, actual=0"
    assert again["x-octavo-shard"] == first["x-octavo-shard"]
    assert again["x-octavo-route-reason"] == "prefix"
    predicted, actual = again["x-octavo-cached-tokens"].split(", ")
    assert int(predicted.removeprefix("predicted=")) == int(actual.removeprefix("actual=")) > 48


def test_the_index_is_what_the_shards_hold(server: Any) -> None:
    for topic in ("seas", "bays", "gulfs", "straits"):
        ask(server, topic)
    wait_for(lambda: index_is_right(server))


def test_a_gateway_that_starts_again_knows_the_caches(server: Any) -> None:
    before = ask(server, "mountains")
    wait_for(lambda: index_is_right(server))
    (gateway,) = gateways(server)
    os.kill(gateway, signal.SIGKILL)
    wait_for(lambda: gateways(server) not in ([], [gateway]))
    wait_for(lambda: index_is_right(server))
    after = ask(server, "mountains")
    assert (after["x-octavo-shard"], after["x-octavo-route-reason"]) == (before["x-octavo-shard"], "prefix")


def gateways(server: Any) -> list[int]:
    """Process ids of the gateways."""
    found = []
    for session in server.sessions:
        for pid in session_members(session):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if "ServeReplica:octavo:gateway" in command:
                found.append(pid)
    return found


def test_all_that_was_decided_so_far_is_decided_again(server: Any) -> None:
    ask(server, "recordings")
    found = [replay_file(file) for file in find_recordings(server.recordings)]
    assert {each.kind for each in found} == {"engine", "router"}
    assert [each.difference for each in found if each.difference is not None] == []
    assert sum(each.frames["Routed"] for each in found) > 0 < sum(each.frames["Committed"] for each in found)
