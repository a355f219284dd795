"""Many shards scored together: the decision is the one that looking at each of them makes."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.block_hash import hash_in_group
from octavo.cost_model import Cost
from octavo.layer_groups import LayerGroups
from octavo.load import LoadedAdapters, ShardState
from octavo.routing import router as module
from octavo.routing.policy import Choice, Query
from octavo.routing.router import KEPT, Router, RoutingConfig

IDLE = ShardState(
    decoding=0, context=0, prefilling=0, queued=0, backlog_tokens=0, backlog_attended=0, chunk=512, max_num_seqs=8,
    blocks=4096, blocks_free=4096, block_size=16, mean_output=100.0, cost=Cost(0.010, 1e-4, 1e-5, 1e-9, 2e-9),
)  # fmt: skip
SLOW, UNKNOWN = Cost(0.02, 2e-4, 0, 0, 0), Cost(0, 0, 0, 0, 0)


class Scene:
    """Two routers that hear the same of the same shards; one looks at each, the other scores all together."""

    def __init__(self, drawn: random.Random) -> None:
        self.drawn, self.now, self.number = drawn, 0.0, 0
        policy = drawn.choice(["prefix_affinity", "prefix_affinity", "least_loaded", "session"])
        config = RoutingConfig(policy=policy, max_blocks_per_shard=drawn.choice([40, 10_000]))
        self.routers = Router(config), Router(config)
        self.names = tuple(f"shard{number}" for number in range(drawn.choice([2, 9, 25])))
        self.fetched = drawn.choice([0.0, 0.0, 1e-4])
        self.groups = drawn.choice([None, None, LayerGroups(1, 1, 1, 33, 64, ((0, 0), (1, 0)))])
        trees = [[drawn.randbytes(16) for _ in range(40)] for _ in range(3)]
        ends = [drawn.randbytes(16) for _ in range(9)]
        self.chains = [[*tree[:length], *ends] for tree in trees for length in (0, 5, 40)]
        self.events = dict.fromkeys(self.names, 0)
        self.tickets: list[str] = []
        for name in self.names:
            self.each(lambda made, name=name: made.join(name, 0.0))  # type: ignore[misc]
            self.snapshot(name)

    def each(self, do) -> None:
        for made in self.routers:
            do(made)

    def snapshot(self, name: str) -> None:
        held = self.held(self.drawn.choice(self.chains)[: self.drawn.randrange(45)])
        self.each(lambda made: made.join(name, self.now).blocks.part(self.events[name], 0, 1, held))

    def held(self, blocks: list[bytes]) -> list[bytes]:
        return [hash_in_group(block, group) for block in blocks for group in range(2 if self.groups else 1)]

    def state(self) -> ShardState:
        drawn, queued = self.drawn, self.drawn.choice([0, 0, 1, 2])
        return replace(
            IDLE, decoding=drawn.choice([0, 3, 7, 8]), context=drawn.choice([0, 3000]), queued=queued,
            prefilling=drawn.choice([0, 1]), backlog_tokens=queued * 500, backlog_attended=queued * 100_000,
            blocks_free=drawn.choice([4096, 100, 10]), cost=drawn.choice([IDLE.cost, IDLE.cost, SLOW, UNKNOWN]),
            fetched_block=drawn.choice([0.0, self.fetched]),
            fetched_start=drawn.choice([0.0, 0.03]), groups=self.groups,
        )  # fmt: skip

    def happen(self) -> None:
        """Something happens to a shard."""
        drawn, name = self.drawn, self.drawn.choice(self.names)
        self.now += drawn.choice([0.0, 0.01, 0.31])
        match drawn.randrange(6):
            case 0:
                kind = drawn.choice(["stored", "stored", "removed", "cleared"])
                first = drawn.randrange(40)
                blocks = [] if kind == "cleared" else self.held(drawn.choice(self.chains)[first : first + 12])
                number = self.events[name]
                self.each(lambda made: made.join(name, self.now).blocks.changes(number, [(kind, blocks)]))
                self.events[name] += 1
            case 1:
                self.snapshot(name)
            case 2 if drawn.random() < 0.2:
                self.each(lambda made: made.leave(name))
            case 3 | 4:
                said = self.state(), [each for each in self.tickets if drawn.random() < 0.2], self.now
                loaded = LoadedAdapters((drawn.choice("xyz"),), 0.07) if drawn.random() < 0.3 else None
                self.each(lambda made: made.heard(name, *said, loaded))
            case _ if self.tickets:
                ticket, ran = self.tickets.pop(drawn.randrange(len(self.tickets))), drawn.random() < 0.8
                self.each(lambda made: made.completed(ticket, ran=ran))

    def choices(self) -> tuple[Choice, Choice]:
        """What both decide on a request."""
        drawn, chain = self.drawn, self.drawn.choice(self.chains)
        self.number += 1
        self.tickets.append(str(self.number))
        query = Query(
            len(chain) * 16 + drawn.choice([0, 3]), drawn.choice([1, 1, 3]), drawn.choice(["", "", "a"]),
            adapter=drawn.choice(["", "", "x", "q"]),
        )  # fmt: skip
        names = self.names if drawn.random() < 0.7 else tuple(drawn.sample(self.names, len(self.names) // 2))
        asked = str(self.number), chain, query, names, self.now, drawn.choice([math.inf, 0.05, 0.5])
        for name in self.names:  # who is not asked is judged late where each is looked at by itself
            self.each(lambda made, name=name: made.state_of(name, self.now))  # type: ignore[misc]
        with mock.patch.object(module, "MANY", 1000):
            first = self.routers[0].route(*asked)
        with mock.patch.object(module, "MANY", 0):
            second = self.routers[1].route(*asked)
        return first, second


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_scoring_all_together_decides_as_looking_at_each_does(seed: int) -> None:
    scene = Scene(random.Random(seed))
    for _ in range(15):
        for _ in range(scene.drawn.randrange(12)):
            scene.happen()
        one, other = scene.choices()
        best = min(KEPT, len(other.order))
        for made in scene.routers:
            assert made.backlog_tokens == sum(shard.backlog_tokens for shard in made.shards.values())
        assert replace(other, order=other.order[:best]) == replace(one, order=one.order[:best])


@pytest.mark.parametrize("asked", [500, 20])
def test_equal_shards_take_turns_however_many_there_are(asked: int) -> None:
    made = Router(RoutingConfig())
    names = tuple(f"shard{number}" for number in range(500))
    for name in names:
        made.join(name, 0.0).blocks.part(0, 0, 1, [])
        made.heard(name, IDLE, [], 0.0)
    found = [made.route(str(number), [], Query(100), names[:asked], 0.0).order[0] for number in range(asked)]
    assert sorted(found) == sorted(names[:asked])
    assert made.latest is not None
    assert (len(made.latest.candidates), made.latest.more) == (KEPT, asked - KEPT)
