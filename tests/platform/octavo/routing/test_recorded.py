"""A router decides again what it decided, whatever shards and gateways went through."""

from __future__ import annotations

import random

import msgspec
import pytest

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.rehearsal.fleet import Fleet
from octavo.rehearsal.simulated import Profile
from octavo.request import Request, SamplingParams
from octavo.routing.recorded import Begun, RecordedRouter, Routed, RouterFrame, RouterReplay
from octavo.routing.router import RoutingConfig

MACHINE = Profile("test", Cost(6.4e-3, 30.3e-6, 10e-6, 1.06e-9, 48.9e-9), 1, 8_000, 2048, ())
encode = msgspec.msgpack.Encoder().encode


def recorded(policy: str) -> list:
    """The frames of a router of two, over shards of which one is not heard for a while, one dies and one comes."""
    frames: list = []
    drawn = random.Random(policy)
    routing = RoutingConfig(policy=policy, max_blocks_per_shard=90, stale_after_s=0.3)
    made = iter([lambda config: RecordedRouter(config, frames.append), lambda config: RecordedRouter(config, print_no)])
    fleet = Fleet(
        MACHINE, 3, EngineConfig(max_num_seqs=8, max_num_batched_tokens=512), routing, gateways=2,
        router=lambda config: next(made)(config),
    )  # fmt: skip

    def send(number: int) -> None:
        prompt = [drawn.randrange(4)] * drawn.randrange(1, 300) + [number] * 20
        request = Request(request_id=f"r{number}", prompt_token_ids=prompt, params=SamplingParams(max_tokens=20))
        request.session = f"secret {number % 5}"
        fleet.send(request)

    for number in range(150):
        fleet.at(number * 0.02, lambda number=number: send(number))
    fleet.at(0.8, lambda: fleet.cut("shard1", 1.8))
    fleet.at(1.5, lambda: fleet.kill("shard2") and None)
    fleet.at(2.0, lambda: fleet.start("shard9") and None)
    fleet.run()
    return frames


def print_no(frame: object) -> None:
    """The other router's."""


@pytest.mark.parametrize("policy", ["prefix_affinity", "session", "round_robin"])
def test_a_router_decides_again(policy):
    frames = recorded(policy)
    assert sum(isinstance(frame, Routed) for frame in frames) == 75
    made: list = []
    replay = RouterReplay(Begun("g", 0.0, 0.0, 10), made.append)
    for frame in frames:
        encoded = encode(frame)
        assert b"secret" not in encoded
        replay.apply(msgspec.msgpack.decode(encoded, type=RouterFrame))
        assert encode(made.pop()) == encoded
        assert not made
