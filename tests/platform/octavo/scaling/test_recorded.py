"""The autoscaler decides again what it decided."""

from __future__ import annotations

import random

import msgspec

from octavo.scaling.policy import ScalingState, ShardLoad, Targets
from octavo.scaling.recorded import Begun, ScalerFrame, ScalerReplay, Seen, decided, scaled


def test_what_was_decided_is_decided_again():
    drawn, frames, state, target = random.Random(1), [], ScalingState(), 1
    for number in range(200):
        shards = [
            ShardLoad(seconds_arriving=drawn.random(), seconds_waiting=drawn.random(), sequences=drawn.randrange(9),
                arrivals=drawn.random() * 9, seconds_each=drawn.random(), capacity=8.0, kv_use=drawn.random(),
                first_token=drawn.random(), age=drawn.random() * 9)
            for _ in range(min(target, 9))
        ]  # fmt: skip
        seen = Seen(shards=shards, now=float(number), running=target, target=target, held=drawn.randrange(5),
                    targets=Targets(down_after=3.0), state=state)  # fmt: skip
        decision = decided(seen)
        frames.append(msgspec.msgpack.encode(scaled(seen, decision)))
        state, target = decision.state, min(9, decision.replicas)
    made: list = []
    replay = ScalerReplay(Begun("m", 0.0), made.append)
    for encoded in frames:
        replay.apply(frame := msgspec.msgpack.decode(encoded, type=ScalerFrame))
        assert made.pop() == frame
    assert replay.now == 199.0
