"""Blocks that come from a tier, late, damaged or not at all: the tokens are those of an engine without one."""

from __future__ import annotations

import pytest

from octavo.engine import arrivals, fetches
from octavo.routing.index import ShardBlocks, keys_of

A, B = list(range(100, 148)), list(range(300, 348))


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    """However long blocks take, computing them would take longer."""
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: float("inf"))


@pytest.fixture
def shelf(fake):
    shelf = fake.Shelf()
    yield shelf
    shelf.open.set()


@pytest.fixture(params=[False, True], ids=["at once", "ahead"])
def engine(request, fake, shelf):
    engine = fake.engine(16, tier=shelf, async_scheduling=request.param)
    yield engine
    shelf.open.set()
    engine.close()
    assert shelf.closed


def ask(fake, engine, name, prompt, **params):
    engine.add(fake.request(name, prompt, max_tokens=4, **params))
    assert fake.run(engine)[name][0] == fake.expected(prompt, 4)
    written(engine)


def written(engine):
    """Waits for the thread."""
    engine.scheduler.fetches._writer.submit(lambda: None).result()


def cached(engine):
    return engine.stats().counters.cached_tokens


def test_what_went_comes_back(fake, engine, shelf):
    """Sixteen blocks hold one prompt of twelve and its answer."""
    ask(fake, engine, "a", A)
    assert not shelf.kept
    ask(fake, engine, "b", B)
    assert len(shelf.kept) >= 9
    ask(fake, engine, "again", A)
    assert cached(engine) == 44
    counters = engine.stats().tier
    assert counters.came == counters.wanted == 8
    assert counters.bytes_read == 16 * counters.came


def test_what_the_cache_holds_outlives_the_engine(fake, shelf):
    first = fake.engine(16, tier=shelf)
    ask(fake, first, "a", A)
    first.close()
    again = fake.engine(16, tier=shelf)
    ask(fake, again, "a", A)
    assert cached(again) == 44


def test_what_nobody_holds_is_kept_while_others_run(fake, engine, shelf):
    """A block each step, a chain's last one first; who ends the process loses what there was no time for."""
    ask(fake, engine, "a", A)
    engine.add(fake.request("other", [1, 2, 3], max_tokens=8))
    while engine.has_work:
        engine.step()
        written(engine)
    assert 2 <= len(shelf.kept) < 12
    while engine.has_chores:
        engine.do_chores()
    written(engine)
    assert len(shelf.kept) == 12 + 2
    assert engine.stats().tier.written == 14


def test_a_block_that_is_being_filled_is_not_kept_yet(fake, engine, shelf):
    ask(fake, engine, "a", A)
    tier = engine.scheduler.fetches
    tier.save_one(range(16))
    written(engine)
    assert not shelf.kept
    assert engine.has_chores
    tier.save_one(())
    written(engine)
    assert len(shelf.kept) == 1


def test_routers_know_what_the_tier_has(fake, engine, shelf):
    """And what is nowhere any more; a listener that comes late learns the same."""
    known = ShardBlocks(1000)
    known.part(*engine.pool.snapshot()[:1], 0, 1, [])
    shelf.lost, prompts = 0.3, [A, B, [*A[:24], *B[:20]], A[:30], B, A]
    for number, prompt in enumerate(prompts):
        ask(fake, engine, f"{number}", prompt)
        while engine.has_chores:
            engine.do_chores()
        written(engine)
        engine.do_chores()
        for event in engine.pool.events.take():
            known.changes(event.sequence, [(event.kind, event.hashes)])
        assert known.exact
        assert known.keys == set(keys_of(engine.pool.snapshot()[1])) >= set(keys_of(shelf.kept))
    assert shelf.lost_reads > 0


@pytest.fixture
def gone(fake, engine, shelf):
    """A is on the shelf alone."""
    ask(fake, engine, "a", A)
    while engine.has_chores:
        engine.do_chores()
    written(engine)
    engine.pool.clear_cache()
    shelf.open.clear()
    return shelf


def test_others_run_while_blocks_arrive(fake, engine, gone):
    engine.add(fake.request("again", A, max_tokens=4))
    engine.add(fake.request("other", [1, 2, 3], max_tokens=8))
    said = []
    while len(said) < 8:
        said += [token for update in engine.step() for token in update.token_ids if update.request_id == "other"]
        engine.check_integrity()
    assert said == fake.expected([1, 2, 3], 8)
    assert engine.has_work
    gone.open.set()
    assert fake.run(engine)["again"][0] == fake.expected(A, 4)
    assert cached(engine) == 44


def test_who_wants_what_arrives_waits_for_it(fake, engine, gone):
    for name in ("one", "two"):
        engine.add(fake.request(name, A[:40], max_tokens=4))
    engine.step()
    gone.open.set()
    assert set(fake.run(engine)) == {"one", "two"}
    assert engine.stats().tier.came <= 12
    assert cached(engine) >= 2 * 36


def test_what_comes_late_is_computed(fake, engine, gone, monkeypatch):
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: 0.02)
    engine.scheduler.fetches.own.block_seconds = 0.0
    engine.add(fake.request("again", A, max_tokens=4))
    assert fake.run(engine)["again"][0] == fake.expected(A, 4)
    assert cached(engine) == 0
    assert engine.stats().tier.failures["late"] > 0


def test_what_is_lost_is_computed(fake, engine, gone):
    lost = list(gone.kept)[4]
    del gone.kept[lost]
    gone.lookup = len
    gone.open.set()
    engine.add(fake.request("again", A, max_tokens=4))
    assert fake.run(engine)["again"][0] == fake.expected(A, 4)
    assert 0 < cached(engine) < 44


def test_who_is_aborted_meanwhile_leaves_nothing(fake, engine, gone):
    engine.add(fake.request("again", A, max_tokens=4))
    engine.step()
    assert engine.scheduler.fetches.active
    assert [update.finish_reason for update in engine.abort("again")] == ["abort"]
    gone.open.set()
    assert fake.run(engine) == {}
    assert engine.pool.num_owned == 0


def test_who_runs_takes_the_blocks_that_arrive(fake, engine, gone):
    """There are sixteen, of which eleven wait for what never comes."""
    engine.add(fake.request("again", A, max_tokens=1))
    engine.add(fake.request("long", [1, 2, 3], max_tokens=40))
    said = []
    while len(said) < 40:
        said += [token for update in engine.step() for token in update.token_ids if update.request_id == "long"]
    assert said == fake.expected([1, 2, 3], 40)
    gone.open.set()
    assert fake.run(engine)["again"][0] == fake.expected(A, 1)


def test_a_step_that_raises_ends_no_one_else(fake, engine, gone, monkeypatch):
    launch, model = fake.model(engine).launch, fake.model(engine)

    def raises(batch):
        if 7 in batch.token_ids:
            raise RuntimeError("seven")
        return launch(batch)

    monkeypatch.setattr(model, "launch", raises)
    engine.add(fake.request("again", A, max_tokens=4))
    engine.add(fake.request("guilty", [7], max_tokens=4))
    out = {}
    while engine.has_work:
        for update in engine.step():
            out.setdefault(update.request_id, []).append(update)
        engine.check_integrity()
        if "guilty" in out:
            gone.open.set()
    assert out["guilty"][-1].finish_reason == "error"
    assert [token for update in out["again"] for token in update.token_ids] == fake.expected(A, 4)


def test_a_slow_tier_is_not_asked(fake, engine, gone, monkeypatch):
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: 1.0)
    engine.scheduler.fetches.own.block_seconds = 1.0
    engine.add(fake.request("again", A, max_tokens=4))
    assert fake.run(engine)["again"][0] == fake.expected(A, 4)
    assert engine.stats().tier.wanted == 0


def test_no_more_is_copied_than_may_wait(fake, engine, shelf, monkeypatch):
    monkeypatch.setattr(fetches, "STAGED_BYTES", 3 * 16)
    ask(fake, engine, "a", A)
    ask(fake, engine, "b", B)
    assert engine.stats().tier.failures["busy"] > 0
    ask(fake, engine, "again", A)
