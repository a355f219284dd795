"""One request's harm is one request's: who is found guilty, in how many trials, and what the others are told."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.engine.isolation import CALM_STEPS, UNEXPLAINED, Isolation, Unexplained
from octavo.errors import EngineDead


def search(isolation: Isolation, ids: list[str], poison: set[str], leaves: dict[int, str] | None = None, newcomers=()):
    """Run the trials after a step of `ids` raised; returns the guilty and the number of trials."""
    trials = 0
    isolation.raised(ids, newcomers)
    while isolation.members:
        trials += 1
        if (leaver := (leaves or {}).get(trials)) is not None:
            isolation.left(leaver)
            continue
        members = list(isolation.members)
        assert all(map(isolation.may_run, members))
        if poison & set(members):
            isolation.raised(members)
        else:
            for member in members:
                isolation.passed(member)
    guilty = isolation.conclude(trials)
    assert not isolation.trying
    return guilty, trials


@pytest.mark.parametrize("count", [1, 2, 3, 32, 33, 256])
def test_one_poison_among_many_is_found_in_few_trials(count):
    ids = [f"r{i}" for i in range(count)]
    most = 0
    for place in range(count):
        guilty, trials = search(Isolation(), ids, {ids[place]})
        assert guilty == [ids[place]]
        most = max(most, trials)
    assert most <= 2 * math.ceil(math.log2(count)) + 2


@pytest.mark.parametrize("count", [2, 3, 32, 256])
def test_a_newcomer_is_found_in_two_trials(count):
    ids = [f"r{i}" for i in range(count)]
    for new in (ids[0], ids[count // 2], ids[-1]):
        guilty, trials = search(Isolation(), ids, {new}, newcomers={new})
        assert guilty == [new]
        assert trials == 2  # itself, and the others
        guilty, _ = search(Isolation(), ids, {ids[1]}, newcomers={new})
        assert guilty == [ids[1]]


def test_who_raises_alone_only_once_is_not_guilty():
    isolation = Isolation()
    isolation.raised(["a", "b"])
    isolation.raised(isolation.members[:1])
    assert isolation.members == ["a"]
    isolation.passed("a")
    isolation.passed("b")
    assert isolation.conclude(0) == []


@given(st.integers(1, 40), st.data())
def test_exactly_the_poisons_are_found(count, data):
    ids = [f"r{i}" for i in range(count)]
    poison = data.draw(st.sets(st.sampled_from(ids), min_size=1))
    guilty, trials = search(Isolation(), ids, poison)
    assert sorted(guilty) == sorted(poison)
    assert trials <= 3 * count


@given(st.integers(1, 20), st.data())
def test_who_leaves_in_the_middle_is_not_found_and_nobody_else_is_blamed(count, data):
    ids = [f"r{i}" for i in range(count)]
    poison = data.draw(st.sets(st.sampled_from(ids)))
    leaves = data.draw(st.dictionaries(st.integers(1, 12), st.sampled_from(ids)))
    guilty, _ = search(Isolation(), ids, poison, leaves)
    assert set(guilty) <= poison
    assert poison - set(leaves.values()) <= set(guilty)


def test_after_a_search_that_finds_nobody_fewer_run_together_and_take_turns():
    isolation, ids = Isolation(), [f"r{i}" for i in range(9)]
    assert search(isolation, ids, set())[0] == []
    assert isolation.crowd == 4
    turns = []
    for step in range(6):
        isolation.take_turns(ids)
        turns.append([name for name in ids if isolation.may_run(name)])
        assert not isolation.may_run("waits")
        isolation.everybody_ran(step)
    assert turns == 2 * [ids[:4], ids[4:8], [*ids[:3], ids[8]]]  # places that are left are taken
    isolation.take_turns(ids[:3])
    assert [name for name in ("waits", "waits too") if isolation.may_run(name)] == ["waits"]
    search(isolation, ids[:4], set())
    assert isolation.crowd == 2
    isolation.everybody_ran(CALM_STEPS)
    assert isolation.active
    isolation.everybody_ran(99 + CALM_STEPS)
    assert not isolation.active


def test_who_alone_raises_now_and_then_is_guilty_after_some_times():
    isolation = Isolation()
    search(isolation, ["a", "b"], set())
    for _ in range(UNEXPLAINED - 1):
        assert search(isolation, ["a"], set())[0] == []
    assert search(isolation, ["a"], set())[0] == ["a"]
    assert not isolation.active


def test_a_machine_whose_steps_raise_now_and_then_whoever_is_in_them():
    isolation = Isolation()
    for name in "ab":
        search(isolation, [name], set())
    search(isolation, ["a", "b", "c"], {"b"})  # one with a reason starts the count anew
    for name in "ab":
        search(isolation, [name], set())
    with pytest.raises(Unexplained):
        search(isolation, ["a"], set())


def test_suspects_take_turns_with_everybody():
    isolation = Isolation()
    for name in "abc":
        isolation.suspect(name)
    turns = []
    while isolation.active:
        if (begun := isolation.begin()) is not None:
            assert isolation.may_run(begun)
            assert not isolation.may_run("x")
            isolation.passed(begun)
        else:
            assert isolation.may_run("x")
            isolation.everybody_ran(0)
        turns.append(begun)
    assert turns == ["a", None, "b", None, "c"]


def test_a_suspect_that_raises_needs_no_second_trial():
    isolation = Isolation()
    isolation.suspect("a")
    assert isolation.begin() == "a"
    isolation.raised(["a"])
    assert not isolation.members
    assert isolation.conclude(0) == ["a"]


# ---- the engine ---------------------------------------------------------------------------------------------------


class Poison(Exception):
    """What a step with a poisoned token raises."""


def spoil(cache, batch):
    """Leave nonsense where the step was to write."""
    for s, length in enumerate(batch.context_lens):
        positions = range(length - (batch.query_start[s + 1] - batch.query_start[s]), length)
        for position in positions:
            cache[batch.block_tables[s][position // cache.shape[1]], position % cache.shape[1]] = -7


def poisoned(fake, engine, tokens, at="launch"):
    """Have the model raise when one of these tokens is computed."""
    model = fake.model(engine)
    launch = model.launch

    def look(batch):
        if not set(batch.token_ids.tolist()).isdisjoint(tokens):
            spoil(model.cache, batch)
            if at == "launch":
                raise Poison(f"tokens {tokens}")

            def wait():
                raise Poison(f"tokens {tokens}")

            return wait
        return launch(batch)

    model.launch = look
    return model


def tell(engine, ends=None):
    """Step until idle: tokens, reasons and sentences by (request, index)."""
    said = {}
    ends = {} if ends is None else ends
    for _ in range(20_000):
        if not engine.has_work:
            break
        for update in engine.step():
            key = update.request_id, update.index
            said.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason is not None:
                ends[key] = update.finish_reason, update.stop_reason
        engine.check_integrity()
    assert not engine.has_work
    assert engine.pool.num_owned == 0
    assert not engine.isolation.trying
    return said, ends


KINDS = [{}, {"n": 3}, {"presence_penalty": 1.0}, {"logprobs": 2}, {"prompt_logprobs": 1, "n": 2}, {"best_of": 4}]


@pytest.mark.parametrize("config", [{}, {"async_scheduling": True}, {"enable_prefix_caching": False}], ids=str)
@pytest.mark.parametrize("at", ["launch", "wait"])
def test_a_poison_ends_alone_and_the_others_are_told_what_they_would_be(fake, config, at):
    def requests():
        shared = list(range(900, 930))
        for i in range(32):
            prompt = shared[: 9 * (i % 4)] + list(range(1, 8 + i % 5))
            yield fake.request(f"r{i}", prompt, seed=i, max_tokens=10 + i, **KINDS[i % len(KINDS)])

    def everybody(poison=None, late=None):
        engine = fake.engine(**{"num_blocks": 400, "max_num_seqs": 64, "max_num_batched_tokens": 64, **config})
        for i, request in enumerate(requests()):
            engine.add(request)
            if i == 7 and poison is not None:
                engine.add(fake.request("poison", [1, 2, poison], n=4, max_tokens=20))
                engine.add(fake.request("late", [5, 6, 7], seed=late, max_tokens=20))
                poisoned(fake, engine, {poison, fake.expected([5, 6, 7], 6, late)[5]}, at)
        return tell(engine)

    unbroken, ends = everybody()
    harmless = {*range(30), *range(900, 930), *(token for tokens in unbroken.values() for token in tokens)}
    poison = next(token for token in range(fake.VOCAB) if token not in harmless)
    tokens_of_late = (fake.expected([5, 6, 7], 6, seed) for seed in itertools.count(100))
    late = next(100 + i for i, tokens in enumerate(tokens_of_late) if tokens[5] not in harmless | set(tokens[:5]))
    said, told = everybody(poison, late)
    assert {key for key in told if key[0] == "poison"} == {("poison", i) for i in range(4)}
    assert all(told["poison", i][0] == "error" for i in range(4))
    assert "Poison" in told["poison", 0][1]
    assert said["late", 0] == fake.expected([5, 6, 7], 6, late)  # well until its sixth token
    assert told["late", 0][0] == "error"
    assert {key: said[key] for key in unbroken} == unbroken
    assert {key: told[key] for key in ends} == ends


@pytest.mark.parametrize(
    ("prompt", "budget", "n", "caching"), [(1, 2, 3, True), (1, 2, 5, True), (1, 4, 5, True), (1, 8, 3, False)]
)
def test_a_trial_is_not_over_before_all_sequences_of_the_failed_step_have_run(fake, prompt, budget, n, caching):
    """The last of n sequences is poisoned, and the budget of the trial's first steps ends before it."""
    numbers = [*range(500, 500 + prompt)]
    lines = [fake.expected(numbers, 12, (3 + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(n)]
    others = [fake.expected([7, 8, 9], 30, seed) for seed in range(3)]
    harmless = {*numbers, 7, 8, 9, *(token for line in [*lines[:-1], *others] for token in line)}
    place = next(place for place in range(3, 11) if lines[-1][place] not in harmless)
    engine = fake.engine(num_blocks=100, max_num_batched_tokens=budget, enable_prefix_caching=caching)
    poisoned(fake, engine, {lines[-1][place]})
    for seed in range(3):
        engine.add(fake.request(f"r{seed}", [7, 8, 9], seed=seed, max_tokens=30))
    engine.add(fake.request("poison", numbers, seed=3, n=n, max_tokens=12))
    said, ends = tell(engine)
    assert [said[f"r{seed}", 0] for seed in range(3)] == others
    assert ends["poison", n - 1][0] == "error"
    assert said["poison", n - 1] == lines[-1][: place + 1]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["launch", "wait"]), st.booleans(), st.booleans())
def test_random_poison_in_random_batches(fake, seed, at, ahead, caching):
    random_numbers = random.Random(seed)
    count = random_numbers.randrange(1, 20)
    prompts = [[random_numbers.randrange(50) for _ in range(random_numbers.randrange(1, 40))] for _ in range(count)]
    bad = {random_numbers.randrange(1, 100) for _ in range(random_numbers.randrange(0, 3))}
    engine = fake.engine(
        num_blocks=random_numbers.choice((40, 400)), max_num_seqs=random_numbers.choice((4, 32)), max_model_len=100,
        max_num_batched_tokens=random_numbers.choice((8, 64)), async_scheduling=ahead, enable_prefix_caching=caching,
    )  # fmt: skip
    poisoned(fake, engine, bad, at)
    for i, prompt in enumerate(prompts):
        request = fake.request(f"r{i}", prompt, seed=i, max_tokens=12)
        request.alone = random_numbers.random() < 0.2
        engine.add(request)
    said, ends = tell(engine)
    for i, prompt in enumerate(prompts):
        expected = fake.expected(prompt, 12, i)
        if bad & set(prompt):
            wanted = []
        else:
            first = next((place + 1 for place, token in enumerate(expected[:-1]) if token in bad), 12)
            wanted = expected[:first]
        assert said[f"r{i}", 0] == wanted
        assert ends[f"r{i}", 0][0] == ("length" if len(wanted) == 12 else "error")


def test_the_cache_keeps_what_failed_steps_had_no_part_in(fake):
    engine = fake.engine(num_blocks=100)
    engine.add(fake.request("before", list(range(40)), max_tokens=1))
    fake.run(engine)
    cached = engine.pool.num_cached
    poisoned(fake, engine, {999})
    engine.add(fake.request("poison", [*range(200, 230), 999], max_tokens=5))
    tell(engine)
    assert engine.pool.num_cached >= cached - 1  # the control step takes a block
    engine.add(fake.request("after", [*range(200, 230), 7], max_tokens=5))
    said, _ = tell(engine)
    assert said["after", 0] == fake.expected([*range(200, 230), 7], 5)


def test_a_device_that_is_broken_stops_the_engine_and_ends_no_request(fake):
    engine = fake.engine()

    def broken(batch):
        raise RuntimeError("the device is gone")

    for i in range(8):
        engine.add(fake.request(f"r{i}", [i], max_tokens=5))
    engine.step()
    fake.model(engine).launch = broken
    ends = {}
    with pytest.raises(RuntimeError, match="the device is gone"):
        tell(engine, ends)
    assert not ends


@pytest.mark.parametrize("ahead", [False, True])
def test_where_steps_fail_only_with_many_in_them_fewer_run_together(fake, ahead):
    engine = fake.engine(async_scheduling=ahead)
    model = fake.model(engine)
    launch, failed = model.launch, []

    def small(batch):
        if batch.num_seqs > 2:
            failed.append(batch.num_seqs)
            raise MemoryError
        return launch(batch)

    model.launch = small
    for i in range(12):
        engine.add(fake.request(f"r{i}", [i], seed=i, max_tokens=100))
    said, _ = tell(engine)
    assert said == {(f"r{i}", 0): fake.expected([i], 100, i) for i in range(12)}
    assert len(failed) < 20


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("at", ["launch", "wait"])
def test_a_poison_that_raises_now_and_then_is_found_in_smaller_and_smaller_steps(fake, every, at):
    engine = fake.engine(num_blocks=900, max_num_seqs=16)
    model = fake.model(engine)
    launch, times = model.launch, itertools.count(1)

    def look(batch):
        if 13 in batch.sampling.seed and next(times) % every == 0:
            if at == "launch":
                raise Poison
            return lambda: launch(batch) and 1 / 0
        return launch(batch)

    model.launch = look
    for i in range(16):
        engine.add(fake.request(f"r{i}", [i], seed=i, max_tokens=200))
    said, ends = tell(engine)
    assert ends["r13", 0][0] == "error"
    for i in {*range(16)} - {13}:
        assert said[f"r{i}", 0] == fake.expected([i], 200, i)


def test_a_request_that_ends_in_the_trial_that_would_make_it_guilty(fake):
    """Its steps raise every other time, so each trial passes; the third is of its last step."""
    engine = fake.engine()
    model = fake.model(engine)
    launch, times = model.launch, itertools.count()

    def look(batch):
        if next(times) % 2 == 0:
            raise Poison
        return launch(batch)

    model.launch = look
    engine.add(fake.request("a", [1, 2], max_tokens=UNEXPLAINED))
    assert fake.run(engine) == {"a": {0: fake.expected([1, 2], UNEXPLAINED)}}
    assert engine.isolation.searching
    model.launch = launch
    engine.add(fake.request("b", [3], max_tokens=5))
    said, _ = tell(engine)
    assert said == {("b", 0): fake.expected([3], 5)}


def test_a_lost_rank_is_nobodys_fault(fake):
    engine = fake.engine()

    def lost(batch):
        raise EngineDead("rank 1 is gone")

    fake.model(engine).launch = lost
    engine.add(fake.request("a", [1], max_tokens=5))
    with pytest.raises(EngineDead, match="rank 1"):
        engine.step()


def test_a_poison_whose_client_has_gone_leaves_the_others_alone(fake):
    engine = fake.engine()
    poisoned(fake, engine, {999})
    engine.add(fake.request("poison", [999], max_tokens=5))
    engine.add(fake.request("a", [1], max_tokens=5))
    engine.step()
    assert engine.isolation.searching
    engine.abort("poison")
    assert tell(engine)[0]["a", 0] == fake.expected([1], 5)


def test_a_suspect_says_when_its_trial_begins_and_runs_alone_until_two_tokens_are_told(fake):
    engine = fake.engine(max_num_seqs=2)
    engine.add(fake.request("a", [1, 2], max_tokens=40))
    engine.add(fake.request("b", [3, 4], max_tokens=40))  # all places are taken
    engine.step()
    for name in ("s", "t"):
        suspect = fake.request(name, [5, 6, 7], max_tokens=6)
        suspect.alone = True
        engine.add(suspect)
    steps = []
    while engine.has_work:
        updates = engine.step()
        if updates:
            steps.append([(update.request_id, len(update.token_ids)) for update in updates])
    begin = steps.index([("s", 0)])
    assert steps[begin + 1 : begin + 3] == [[("s", 1)], [("s", 1), ("s", 0)]]
    assert not [step for step in steps[:begin] if "s" in dict(step)]
    assert steps.index([("t", 0)]) > begin + 3
    assert engine.pool.num_owned == 0
