"""The policies as tables of cases; a step takes 10 ms, a token 0.1 ms, and a step has 512 prompt tokens, or as said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cost_model import Cost
from octavo.load import ShardState
from octavo.routing.policy import POLICIES, Candidate, PolicyName, Query, apart, explain, least_loaded, score

IDLE = ShardState(
    decoding=0, context=0, prefilling=0, queued=0, backlog_tokens=0, backlog_attended=0, chunk=512, max_num_seqs=64,
    blocks=4096, blocks_free=4096, block_size=16, mean_output=100.0, cost=Cost(0.010, 1e-4, 0.0, 0.0, 0.0),
)  # fmt: skip
BUSY = replace(IDLE, backlog_tokens=2048, queued=2)  # 4 steps and 0.2 s of prompts
SLOW = replace(IDLE, cost=Cost(0.050, 5e-4, 0.0, 0.0, 0.0))
STREAMS = replace(IDLE, decoding=40, context=40_000, cost=Cost(0.010, 1e-4, 1e-4, 0.0, 1e-7))
FULL = replace(IDLE, decoding=64, max_num_seqs=64)
NO_BLOCKS = replace(IDLE, decoding=10, blocks=400, blocks_free=0)


def candidates(**shards: tuple[int, ShardState]) -> list[Candidate]:
    return [Candidate(name, cached, load) for name, (cached, load) in shards.items()]


AFFINITY = {
    # prompt of 1,000 tokens -> order, reason
    "one shard": (candidates(a=(0, IDLE)), "a", "load"),
    "nobody holds it": (candidates(a=(0, BUSY), b=(0, IDLE)), "ba", "load"),
    "equal shards keep the given order": (candidates(b=(0, IDLE), a=(0, IDLE)), "ba", "load"),
    "the holder": (candidates(a=(0, IDLE), b=(960, IDLE)), "ba", "prefix"),
    "the longest holder": (candidates(a=(480, IDLE), b=(960, IDLE), c=(0, IDLE)), "bac", "prefix"),
    "a long queue costs more than the prefix": (candidates(a=(960, BUSY), b=(0, IDLE)), "ba", "spread"),
    "a short queue does not": (candidates(a=(960, replace(IDLE, backlog_tokens=128)), b=(0, IDLE)), "ab", "prefix"),
    "the next holder takes over": (candidates(a=(960, BUSY), b=(800, IDLE), c=(0, IDLE)), "bca", "spread"),
    "a slow holder": (candidates(a=(480, SLOW), b=(0, IDLE)), "ba", "spread"),
    "a slow shard without work": (candidates(a=(0, SLOW), b=(0, replace(IDLE, backlog_tokens=512))), "ba", "load"),
    "streams are not disturbed for nothing": (candidates(a=(0, STREAMS), b=(0, IDLE)), "ba", "load"),
    "a full shard": (candidates(a=(480, FULL), b=(0, IDLE)), "ba", "spread"),
    "no blocks": (candidates(a=(480, NO_BLOCKS), b=(0, IDLE)), "ba", "spread"),
}


def fetching(name: str, cached: int, state: ShardState, peer: str, peer_cached: int, block: float = 1e-3) -> Candidate:
    return Candidate(name, cached, replace(state, fetched_block=block), peer=peer, peer_cached=peer_cached)


FETCHES = {
    # prompt of 1,000 tokens -> order, reason, from whom, blocks there, tokens found
    "it is busy": ([fetching("a", 960, BUSY, "", 0), fetching("b", 0, IDLE, "a", 960)], "ba", "fetch", "a", 960),
    "it has room": ([fetching("a", 960, IDLE, "", 0), fetching("b", 0, IDLE, "a", 960)], "ab", "prefix", "", 960),
    "fetching is slow": (
        [fetching("a", 960, BUSY, "", 0), fetching("b", 0, IDLE, "a", 960, 0.1)], "ba", "spread", "", 0,
    ),
    "asking is slow": (
        [fetching("a", 960, BUSY, "", 0), fetching("b", 0, replace(IDLE, fetched_start=5.0), "a", 960)],
        "ba", "spread", "", 0,
    ),
    "it is full": ([fetching("b", 160, IDLE, "c", 960)], "b", "fetch", "c", 960),
}  # fmt: skip


@pytest.mark.parametrize(("shards", "order", "reason", "peer", "cached"), FETCHES.values(), ids=FETCHES.keys())
def test_what_another_shard_holds_is_fetched_where_that_is_sooner(
    shards: list[Candidate], order: str, reason: str, peer: str, cached: int
) -> None:
    choice = POLICIES["prefix_affinity"](Query(1000), shards, 0.05)
    assert ("".join(choice.order), choice.reason, choice.peer, choice.cached) == (order, reason, peer, cached)
    assert choice.peer_blocks == (60 if peer else 0)
    assert choice.score.fetch == pytest.approx(choice.score.fetched / 16 * 1e-3)


def test_policies_that_look_at_the_load_alone_place_by_it_and_fetch_then() -> None:
    shards = [fetching("a", 960, BUSY, "", 0), fetching("b", 0, IDLE, "a", 960)]
    for name in ("least_loaded", "session"):
        choice = POLICIES[name](Query(1000), shards, 0.05)
        assert (choice.order, choice.reason, choice.peer) == (["b", "a"], "load", "a")


def sharing(name: str, state: ShardState, busy: float = 0.0, cached: int = 0, block: float = 1e-4) -> Candidate:
    return Candidate(name, cached, replace(state, fetched_block=block), busy=busy)


RUNS = replace(IDLE, decoding=40, context=40_000)
LONG = Query(8000, parts=True)
APART = {
    # prompt of 8,000 tokens -> where it runs, where its prompt is computed
    "prompts here, streams there": ([sharing("a", RUNS), sharing("b", IDLE, busy=0.6)], "a", "b"),
    "nobody is busy": ([sharing("a", RUNS), sharing("b", IDLE)], "b", ""),
    "all idle": ([sharing("a", IDLE), sharing("b", IDLE)], "a", ""),
    "one shard": ([sharing("a", RUNS, busy=0.6)], "a", ""),
    "fetching is slow": ([sharing("a", RUNS), sharing("b", IDLE, busy=0.6, block=0.0),
                          sharing("c", RUNS, block=1.0)], "b", ""),
    "the one that cannot give": ([sharing("a", RUNS), sharing("b", IDLE, busy=0.6, block=0.0)], "b", ""),
    "it is cached where it runs": ([sharing("a", RUNS, cached=7984), sharing("b", IDLE, busy=0.6)], "a", ""),
}  # fmt: skip


@pytest.mark.parametrize(("shards", "runs", "computes"), APART.values(), ids=APART.keys())
def test_a_prompt_is_computed_apart_where_that_holds_streams_up_less(
    shards: list[Candidate], runs: str, computes: str
) -> None:
    choice = apart(LONG, shards, 0.01, 1.0)
    assert (choice.order[0], choice.placement("").prefill) == (runs, computes)
    assert sorted(choice.order) == sorted(shard.name for shard in shards)
    if choice.prefill is not None:
        assert (choice.reason, choice.peer, choice.peer_blocks, choice.cached) == ("apart", computes, 499, 7984)
        assert choice.score.first_token > choice.score.elsewhere > 0.8
        assert choice.score.elsewhere == choice.prefill.score.first_token
    lines = explain(LONG, shards, 0.01, 1.0).splitlines()
    totals = {name: float(rest.split()[0]) for name, _, rest in (line.partition(": ") for line in lines)}
    assert min(totals, key=lambda name: totals[name]) == (f"{computes} for {runs}" if computes else runs)


def test_most_of_a_prompt_comes_while_the_rest_is_computed() -> None:
    """Only its last chunk's blocks are waited for, or what a line lacks that is slower than computing."""
    quick, slow = (
        apart(LONG, [sharing("a", RUNS, block=block), sharing("b", IDLE, busy=0.6, block=block)], 0.01, 1.0)
        for block in (1e-4, 4e-3)
    )
    assert quick.prefill is not None
    assert slow.prefill is not None
    assert quick.score.fetch == pytest.approx(499e-4 * IDLE.chunk / 7984)
    assert slow.score.fetch == pytest.approx(499 * 4e-3 - slow.prefill.score.own)


def test_a_prompt_that_is_computed_apart_fetches_what_its_shard_lacks() -> None:
    streams = sharing("a", RUNS, cached=6000)
    prompts = replace(sharing("b", IDLE, busy=0.6), peer="a", peer_cached=6000)
    choice = apart(LONG, [streams, prompts], 0.01, 1.0)
    assert choice.prefill is not None
    first = choice.prefill
    assert (choice.order[0], first.order, first.peer, first.peer_blocks, first.cached) == ("a", ["b"], "a", 375, 6000)


def test_streams_do_not_gather_where_they_will_have_no_room_to_grow() -> None:
    runs, prompts = APART["prompts here, streams there"][0]
    long = replace(runs.state, mean_output=2000.0, blocks_free=1000)
    assert apart(LONG, [replace(runs, state=long), prompts], 0.01, 1.0).prefill is None


def test_what_has_no_parts_runs_on_one_shard() -> None:
    shards = APART["prompts here, streams there"][0]
    assert apart(replace(LONG, parts=False), shards, 0.01, 1.0).prefill is None
    assert apart(LONG, [replace(shards[0], stale=True), shards[1]], 0.01, 1.0).prefill is None


@pytest.mark.parametrize(("shards", "order", "reason"), AFFINITY.values(), ids=AFFINITY.keys())
def test_prefix_affinity(shards: list[Candidate], order: str, reason: str) -> None:
    choice = POLICIES["prefix_affinity"](Query(1000), shards, 0.05)
    assert ("".join(choice.order), choice.reason) == (order, reason)


def test_a_busy_fleet_computes_no_prefix_twice_for_a_moment_gained() -> None:
    shards = candidates(a=(960, BUSY), b=(0, IDLE))
    reasons = [POLICIES["prefix_affinity"](Query(1000, busy=busy), shards, 0.05).reason for busy in (0.3, 0.7, 1.0)]
    assert reasons == ["spread", "prefix", "prefix"]


def test_a_loaded_adapter_is_worth_the_seconds_that_another_takes() -> None:
    """A step more of waiting is less than reading it, four are not; with nothing else to choose by it decides alone."""
    cold, names = Candidate("cold", 0, IDLE, adapter=0.05), []
    for backlog in (0, 128, 2048):
        warm = Candidate("warm", 0, replace(IDLE, backlog_tokens=backlog))
        names.append(POLICIES["prefix_affinity"](Query(1000, adapter="a"), [cold, warm], 0.05).order[0])
    assert names == ["warm", "warm", "cold"]
    assert score(Query(1000, adapter="a"), cold, 0, 0.05).adapter == 0.05


LEAST_LOADED = {
    "ignores what is cached": (candidates(a=(960, replace(IDLE, backlog_tokens=128)), b=(0, IDLE)), "ba"),
    "knows that a machine is slow": (candidates(a=(0, SLOW), b=(0, replace(IDLE, backlog_tokens=512))), "ba"),
    "equal shards keep the given order": (candidates(c=(0, IDLE), a=(0, IDLE), b=(0, IDLE)), "cab"),
}


@pytest.mark.parametrize(("shards", "order"), LEAST_LOADED.values(), ids=LEAST_LOADED.keys())
def test_least_loaded(shards: list[Candidate], order: str) -> None:
    choice = POLICIES["least_loaded"](Query(1000), shards, 0.05)
    assert ("".join(choice.order), choice.reason) == (order, "load")


@pytest.mark.parametrize(("turn", "order"), [(0, "abc"), (1, "bca"), (2, "cab"), (3, "abc"), (301, "bca")])
def test_round_robin(turn: int, order: str) -> None:
    shards = candidates(b=(960, IDLE), c=(0, BUSY), a=(0, SLOW))  # neither order, load nor cache matter
    choice = POLICIES["round_robin"](Query(1000, turn=turn), shards, 0.05)
    assert ("".join(choice.order), choice.reason) == (order, "turn")


@pytest.mark.parametrize("key", ["alice", "bob", "", "\ud800"])
def test_session(key: str) -> None:
    names = "abcdefgh"
    idle = candidates(**dict.fromkeys(names, (0, IDLE)))
    other = candidates(**dict.fromkeys(reversed(names), (960, BUSY)))
    first = POLICIES["session"](Query(1000, session=key), idle, 0.05)
    again = POLICIES["session"](Query(10, session=key), other, 0.05)
    if key:
        assert first.order == again.order
        assert first.reason == "session"
    else:
        assert first == least_loaded(Query(1000), idle, 0.05)


def test_a_new_shard_takes_its_share_of_the_sessions_and_no_more() -> None:
    def homes(names: str) -> dict[str, str]:
        shards = candidates(**dict.fromkeys(names, (0, IDLE)))
        return {
            key: POLICIES["session"](Query(10, session=key), shards, 0.05).order[0]
            for key in map(str, range(2000))
        }  # fmt: skip

    before, after = homes("abcdefgh"), homes("abcdefghi")
    moved = [key for key in before if before[key] != after[key]]
    assert all(after[key] == "i" for key in moved)
    assert 2000 / 9 * 0.75 < len(moved) < 2000 / 9 * 1.25
    counts = [list(after.values()).count(name) for name in "abcdefghi"]
    assert max(counts) < 1.4 * min(counts)


def test_a_shard_that_is_not_heard_is_taken_only_for_its_load() -> None:
    shards = [Candidate("a", 0, replace(IDLE, decoding=1), stale=True), Candidate("b", 960, BUSY)]
    choice = POLICIES["prefix_affinity"](Query(1000), shards, 0.05)
    assert (choice.order[0], choice.reason) == ("a", "stale")


def test_the_formula_by_hand() -> None:
    state = replace(STREAMS, backlog_tokens=1024, backlog_attended=500_000, cost=Cost(0.01, 1e-4, 1e-4, 1e-8, 1e-7))
    terms = score(Query(1000, busy=0.6), Candidate("a", 488, state), 488, 0.05)
    step = 0.01 + (1e-4 + 1e-4) * 40 + (1e-8 + 1e-7) * 40_000
    assert terms.wait == 0
    assert terms.queue == pytest.approx(2.5 * (step + 1e-4) + 0.1024 + 0.005)
    own = 512 * 1e-4 + sum(range(489, 1001)) * 1e-8
    assert terms.own == pytest.approx(step + 1e-4 + own)
    assert terms.others == pytest.approx((1.5 + 0.05 * 40) * own)
    line = explain(Query(1000, busy=0.6), [Candidate("a", 488, state)], 0.05)
    assert f"a: {terms.total:.4f} s" in line
    assert "cached 488 of 1000" in line


@given(
    st.sampled_from(sorted(POLICIES)),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5000), st.integers(0, 100), st.booleans()), min_size=1,
             max_size=8),
    st.text(max_size=3),
)  # fmt: skip
def test_every_shard_is_ranked_once(name: PolicyName, drawn: list[tuple[int, int, int, bool]], key: str) -> None:
    shards = [
        Candidate(f"s{i}", 16 * cached, replace(IDLE, backlog_tokens=prefill, decoding=running, queued=i), stale)
        for i, (cached, prefill, running, stale) in enumerate(drawn)
    ]
    choice = POLICIES[name](Query(1000, session=key, turn=len(drawn)), shards, 0.05)
    assert sorted(choice.order) == sorted(shard.name for shard in shards)
    assert choice.cached == {shard.name: shard.cached for shard in shards}[choice.order[0]]
