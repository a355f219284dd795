"""A few hundred of the proof's hostile requests (`proofs/hostile.py`) at the session's server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "proofs"))
from hostile import STREAMS, Attackers, Healthy, expected_texts

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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
