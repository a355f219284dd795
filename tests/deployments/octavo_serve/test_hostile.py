"""A few hundred of the proof's hostile requests: their bodies at the application, and all of them at a server."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo_serve.api.service import Service
from octavo_serve.http.app import http_app

sys.path.insert(0, str(Path(__file__).parent / "proofs"))
from hostile import STREAMS, Attackers, Healthy, expected_texts
from hostile_requests import attack


def posts(seed: int, count: int) -> list[tuple[str, bytes]]:
    """Path and body of requests whose head is in order."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        one = attack(rng, "tiny")
        head, _, body = b"".join(part for part in one.sends if isinstance(part, bytes)).partition(b"\r\n\r\n")
        if one.complete and head.startswith(b"POST ") and one.kind != "header":
            found.append((head.split(b" ")[1].decode(), body))
    return found


def says(path: str, error: Any) -> bool:
    """Whether it is an error as the path's protocol has it."""
    if path.startswith(("/generate", "/v2")):
        return isinstance(error, str)
    return set(error) == {"message", "type"} | (set() if path.startswith("/v1/messages") else {"param", "code"})


@pytest.mark.parametrize("seed", range(3))
def test_no_body_is_the_servers_fault(service: Service, backend: Any, seed: int) -> None:
    async def run() -> Counter[int]:
        codes = Counter[int]()
        transport = httpx.ASGITransport(http_app(service, backend), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            for path, body in posts(seed, 200):
                answer = await http.post(path, content=body, headers={"content-type": "application/json"})
                codes[answer.status_code] += 1
                assert answer.status_code < 500, (path, body[:500], answer.text)
                assert answer.status_code == 200 or says(path, answer.json()["error"])
        return codes

    codes = asyncio.run(run())
    assert codes[400] > 50
    assert codes[200] > 0


@pytest.mark.ray
@pytest.mark.slow
def test_hostile_requests_are_their_senders_affair(server: Any) -> None:
    async def run() -> tuple[Healthy, dict[str, Any]]:
        healthy = Healthy(server.url, "smollm2", 20, await expected_texts(server.url, "smollm2", 20))
        attackers = Attackers(int(server.url.rpartition(":")[2]), "smollm2", seed=5)
        attacking = asyncio.create_task(attackers.run(200, clients=8, rate=1000.0))
        await healthy.run_until(attacking)
        return healthy, attacking.result()

    shards = server.shards()
    healthy, report = asyncio.run(run())
    assert healthy.failures == []
    assert healthy.finished >= STREAMS
    assert report["bad"] == []
    assert sum(report["answers"].values()) == 200
    assert report["answers"]["400"] > 100
    assert server.shards() == shards
    server.wait_for("vllm:num_requests_running", 0, 30)
