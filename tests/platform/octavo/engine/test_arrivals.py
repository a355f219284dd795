"""Blocks that come from another shard: as a router says, where that saves time, and never wrong ones."""

from __future__ import annotations

import pytest

from octavo.engine import arrivals
from octavo.request import Placement

A = list(range(100, 148))


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: float("inf"))


@pytest.fixture
def other(fake):
    """Has computed A."""
    engine = fake.engine()
    engine.add(fake.request("a", A, max_tokens=4))
    fake.run(engine)
    return fake.Neighbour(engine)


@pytest.fixture(params=[False, True], ids=["at once", "ahead"])
def engine(request, fake, other):
    engine = fake.engine(async_scheduling=request.param)
    engine.share(fake.Neighbours(other=other))
    yield engine
    other.open.set()
    engine.close()
    assert other.closed


def ask(fake, engine, name, prompt=A, peer="other", blocks=11, **params):
    request = fake.request(name, prompt, **{"max_tokens": 4} | params)
    request.placement = Placement(name, "here", "fetch", 4 * blocks, 0.0, peer, blocks)
    engine.add(request)


def said(fake, engine, name, prompt=A, **asked):
    ask(fake, engine, name, prompt, **asked)
    assert fake.run(engine)[name][0] == fake.expected(prompt, 4)
    return engine.stats().counters.cached_tokens


def test_what_another_shard_has_is_not_computed(fake, engine, other):
    assert said(fake, engine, "again") == 44
    stats = engine.stats()
    assert (stats.peers.wanted, stats.peers.came, stats.peers.bytes_read) == (11, 11, 11 * 16)
    assert other.engine.stats().given == 11
    assert stats.tier.wanted == 0
    kinds = [(d.kind, d.reason) for d in engine.scheduler.decisions.of("again")]
    assert ("fetch", "its blocks come from another shard") in kinds


def test_the_time_is_told(fake, engine, other):
    other.open.clear()
    ask(fake, engine, "again")
    engine.step()
    other.open.set()
    fake.run(engine)
    assert engine.courses("again")[0].causes["peer"] > 0


def test_nobody_is_asked_without_a_word_of_a_router(fake, engine, other):
    assert said(fake, engine, "again", peer="") == 0
    assert said(fake, engine, "stranger", [*A[1:]], peer="unknown") == 0
    assert other.reads == 0


def test_what_is_here_is_not_fetched(fake, engine, other):
    said(fake, engine, "first", A[:24], peer="", blocks=0)
    said(fake, engine, "again")
    assert engine.stats().peers.wanted == 11 - 6


@pytest.mark.parametrize("seed", range(5))
def test_what_does_not_come_is_computed(fake, engine, other, seed):
    other.random.seed(seed)
    other.most = lambda rng: rng.randrange(11)
    assert said(fake, engine, "again") < 44


def test_a_router_may_be_wrong(fake, engine, other):
    """Of the prompt's twelve blocks the last is always computed; the other shard has none of these."""
    assert said(fake, engine, "unknown", list(range(500, 548)), blocks=400) == 0


def test_others_run_while_blocks_come(fake, engine, other):
    other.open.clear()
    ask(fake, engine, "again")
    ask(fake, engine, "other", [1, 2, 3], peer="", max_tokens=8)
    told = []
    while len(told) < 8:
        told += [token for update in engine.step() for token in update.token_ids if update.request_id == "other"]
        engine.check_integrity()
    other.open.set()
    assert fake.run(engine)["again"][0] == fake.expected(A, 4)
    assert engine.stats().counters.cached_tokens == 44


def test_who_is_late_costs_no_more_than_computing(fake, engine, other, monkeypatch):
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: 0.02)
    other.open.clear()
    ask(fake, engine, "again")
    assert fake.run(engine)["again"][0] == fake.expected(A, 4)
    assert other.failures["late"] == 11
    other.open.set()
    assert said(fake, engine, "more", [*A, *A]) == 48  # its own by now
    assert engine.stats().peers.wanted == 11


def test_a_slow_shard_is_not_asked_and_routers_hear_how_slow(fake, engine, other, monkeypatch):
    assert engine.state().fetched_block == 16 / 2**28  # a guess
    said(fake, engine, "first")
    engine.scheduler.fetches._others["other"].block_seconds = 0.5
    assert engine.state().fetched_block == 0.5
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: 1.0)
    engine.pool.clear_cache()
    assert said(fake, engine, "again", [*A[:40], 1, 2, 3, 4]) == 44  # of the first time
    assert other.reads == 1


def test_what_a_question_takes_is_not_what_its_blocks_take(fake, engine, other, monkeypatch):
    """Eleven of half a million that a lot may have: they say next to nothing of one."""
    read = arrivals.Arrivals._read
    monkeypatch.setattr(arrivals.Arrivals, "_read", lambda *each: read(*each)._replace(seconds=11.0))
    said(fake, engine, "first")
    assert other.reads == 1
    state = engine.state()
    assert state.fetched_block < 1e-3
    assert 0 < state.fetched_start < 11
    assert state.fetch_seconds(40) == state.fetched_start + 10 * state.fetched_block


def test_the_nearer_of_two_is_asked(fake, other):
    """A tier that has all of it, and a shard that is known to be slow."""
    shelf = fake.Shelf()
    engine = fake.engine(tier=shelf)
    engine.share(fake.Neighbours(other=other))
    said(fake, engine, "a", peer="", blocks=0)
    while engine.has_chores:
        engine.do_chores()
    engine.pool.clear_cache()
    assert said(fake, engine, "again") == 44
    assert engine.stats().tier.came == 11
    assert engine.stats().peers.wanted == 0
    engine.close()


def test_a_shard_that_comes_back_elsewhere_is_another(fake, engine, other):
    said(fake, engine, "first", A[:24])
    engine.scheduler.fetches.peers.known["other"] = fresh = fake.Neighbour(other.engine)
    said(fake, engine, "again")
    assert (other.reads, fresh.reads) == (1, 1)
    other.closed = True


def test_blocks_whose_content_is_not_certain_are_not_given(fake):
    """Of a step in flight nothing is known yet."""
    engine = fake.engine(async_scheduling=True)
    engine.add(fake.request("a", A, max_tokens=40))
    seen = set()
    while engine.has_work:
        engine.step()
        for seq in engine.scheduler.sequences("a"):
            chain = seq.hashes(4)
            data = engine.copy_blocks(chain)()
            seen.add(len(chain) - len(data))
            for place, row in enumerate(data.view("int32")):
                assert row.tolist() == list(seq.token_ids[4 * place : 4 * place + 4])
    assert seen > {0}
    engine.close()


def warmed(fake, engine):
    while engine.has_work:
        engine.step()
        engine.check_integrity()


def test_blocks_come_for_whoever_asks_next(fake, engine, other, monkeypatch):
    """A lot at a time; what is here does not come again."""
    monkeypatch.setattr(arrivals, "LOT_BYTES", 16 * 4)
    said(fake, engine, "first", A[:12], peer="", blocks=0)
    engine.scheduler.fetches._lot = 4
    engine.warm("other", other.engine.pool.hottest(100))
    warmed(fake, engine)
    assert engine.stats().peers.came == 12 - 3
    assert said(fake, engine, "again", peer="") == 44


def test_blocks_of_a_prompt_come_before_its_request_as_they_are_computed(fake, engine, other):
    """What a cache holds that is full gives way, what is here or under way is not asked for again, and it waits for the
    rest of its blocks alone."""
    chain = fake.request("x", A).block_hashes or other.engine.pool.snapshot()[1][:12]
    said(fake, engine, "first", A[:12], peer="", blocks=0)
    other.open.clear()
    engine.bring("other", chain[:6])
    engine.bring("other", chain[:8])
    assert engine.stats().peers.wanted == 8 - 3
    engine.bring("nobody", chain)
    other.open.set()
    warmed(fake, engine)
    assert engine.stats().peers.came == 8 - 3
    assert said(fake, engine, "again") == 44
    assert engine.stats().peers.wanted == 11 - 3


def test_what_was_read_at_once_comes_into_the_cache_a_lot_a_step(fake, engine, other):
    engine.scheduler.fetches._lot = 4
    ask(fake, engine, "again")
    engine.step()
    arriving = next(iter(engine.scheduler.fetches._all()))
    arriving._lot, counts = 2, []
    while engine.has_work:
        engine.step()
        counts.append(engine.stats().peers.came)
    assert sorted({*counts} - {0}) == [2, 4, 6, 8, 10, 11]


def test_a_request_comes_before_what_nobody_asked_for(fake, engine, other):
    engine.scheduler.fetches._lot = 4
    other.open.clear()
    engine.warm("other", other.engine.pool.hottest(100))
    engine.step()
    ask(fake, engine, "again")  # it waits for the lot that is under way, and the rest is computed
    ask(fake, engine, "stranger", [1, 2, 3], peer="")
    told = []
    while len(told) < 4:
        told += [token for update in engine.step() for token in update.token_ids if update.request_id == "stranger"]
    other.open.set()
    assert fake.run(engine)["again"][0] == fake.expected(A, 4)


def test_nothing_goes_for_what_nobody_asked_for(fake, other):
    engine = fake.engine(14)
    engine.share(fake.Neighbours(other=other))
    said(fake, engine, "own", list(range(500, 545)), peer="", blocks=0)
    own = engine.pool.snapshot()[1]
    engine.warm("other", other.engine.pool.hottest(100))
    engine.warm("nobody", [bytes(16)])
    warmed(fake, engine)
    assert engine.stats().peers.wanted == 0
    assert set(engine.pool.snapshot()[1]) == set(own)
    engine.close()


def test_a_step_that_fails_ends_what_comes(fake, engine, other):
    other.open.clear()
    engine.warm("other", other.engine.pool.hottest(100))
    engine.step()
    engine.scheduler.roll_back([])
    other.open.set()
    warmed(fake, engine)
    assert said(fake, engine, "again") == 44
