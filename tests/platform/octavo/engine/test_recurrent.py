"""Models with recurrent layers: their states on real schedules, with a model whose answers a wrong one changes."""

import dataclasses
import random

import pytest

from octavo.errors import ConfigError, Overloaded
from octavo.request import BeamSearch

STATES = (40, 3)  # how many, and blocks between the checkpoints of a prompt


def storm(fake, seed, operations, **settings):
    """Random requests, forks, aborts and searches; what each says is compared with an unbroken run."""
    rng = random.Random(seed)
    engine = fake.engine(
        num_blocks=rng.choice([60, 90, 150]), states=(rng.choice([4, 6, 17, 60]), rng.choice([1, 3])),
        max_num_seqs=rng.choice([4, 8, 16]), max_num_batched_tokens=rng.choice([3, 8, 32, 200]),
        max_model_len=120, max_num_queued_requests=30, enable_prefix_caching=rng.random() < 0.8, **settings,
    )  # fmt: skip
    prefixes = [[rng.randrange(fake.VOCAB) for _ in range(40)] for _ in range(4)]
    asked, said, ended, dropped, searches = {}, {}, {}, set(), {}

    def take(updates):
        for update in updates:
            key = (update.request_id, update.index)
            said.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason:
                ended[key] = update.finish_reason

    for number in range(operations):
        dice = rng.random()
        if dice < 0.35:
            prompt = rng.choice(prefixes)[: rng.randrange(41)] + [rng.randrange(fake.VOCAB)] * rng.randrange(1, 30)
            n, count = rng.choice([1, 1, 1, 2, 4, 20]), max(0, rng.randrange(-8, 60))
            params = {"n": n, "max_tokens": count, "cache_salt": rng.choice(["", "", "x"])}
            width = engine.config.max_num_seqs
            if rng.random() < 0.1:
                params |= {"n": 1, "beams": BeamSearch(width=min(3, width)), "max_tokens": 6, "ignore_eos": True}
            request = fake.request(f"r{number}", prompt, rng.randrange(2**40), priority=rng.randrange(3), **params)
            try:
                engine.add(request)
                (searches if "beams" in params else asked)[request.request_id] = request
            except Overloaded:
                pass
        elif dice < 0.42 and asked:
            victim, index = rng.choice(list(asked)), rng.choice([None, None, 0, 1])
            take(engine.abort(victim, index))
            dropped |= {victim} if index is None or (not index and asked[victim].params.n == 1) else set()
        else:
            take(engine.step())
        engine.check_integrity()
    for _ in range(20_000):
        if not engine.has_work:
            break
        take(engine.step())
    engine.check_integrity()
    assert not engine.has_work
    assert engine.pool.num_owned == 0
    for request in asked.values():
        for i in range(request.params.n):
            key = (request.request_id, i)
            if request.request_id in dropped and key not in ended:
                continue
            seed = (request.seed + i * 0x9E3779B97F4A7C15) % 2**64
            assert said[key] == fake.expected(request.prompt_token_ids, len(said[key]), seed)
    for request in searches.values():
        alone = fake.engine(num_blocks=100, max_model_len=120)
        alone.add(request)
        if said[request.request_id, 0]:
            assert fake.run(alone)[request.request_id][0] == said[request.request_id, 0]
    counters = engine.stats().counters
    return {"preemptions": counters.preemptions, "cached": counters.cached_tokens, "searches": len(searches)}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_storm(fake, seed, ahead):
    storm(fake, seed, 250, async_scheduling=ahead)


def test_storms_meet_what_they_are_for(fake):
    counts = [storm(fake, seed, 250) for seed in range(20, 23)]
    assert all(sum(count[name] for count in counts) > 0 for name in counts[0]), counts


def cached(engine, fake, request):
    engine.add(request)
    found = None
    while engine.has_work:
        for update in engine.step():
            found = update.num_cached_tokens if found is None else found
    engine.check_integrity()
    return found


def test_a_prefix_is_found_as_far_as_there_is_a_checkpoint(fake):
    engine = fake.engine(states=(40, 1000))
    prompt = list(range(50))  # blocks of 4
    assert cached(engine, fake, fake.request("a", prompt, max_tokens=1)) == 0
    assert cached(engine, fake, fake.request("b", prompt, max_tokens=1)) == 48  # the end of the prompt
    shorter = fake.request("c", [*prompt[:30], 999, 998, 997, 996], max_tokens=1)
    assert cached(engine, fake, shorter) == 0  # the blocks are there, and no state
    other = [*prompt[:30], 5, 5, 5, 5, 5]
    assert cached(engine, fake, fake.request("d", other, max_tokens=1)) == 28  # now there is, where they parted


def test_an_answer_is_gone_on_from_its_last_block(fake):
    engine = fake.engine(states=(40, 1000))
    prompt = list(range(10))
    answer = fake.expected(prompt, 31)
    assert cached(engine, fake, fake.request("a", prompt, max_tokens=31, ignore_eos=True)) == 0
    assert cached(engine, fake, fake.request("b", [*prompt, *answer, 7, 8], max_tokens=1)) == 40
    engine.pool.states.begin_step(0)
    assert engine.pool.states.num_cached == 2  # of the prompt and of the answer


def test_long_prompts_leave_checkpoints_on_the_way(fake):
    engine = fake.engine(states=(40, 3))
    prompt = list(range(100, 150))
    cached(engine, fake, fake.request("a", prompt, max_tokens=1))
    assert cached(engine, fake, fake.request("b", [*prompt[:27], 1, 2, 3], max_tokens=1)) == 24


def test_checkpoints_go_with_their_blocks(fake):
    engine = fake.engine(states=(40, 3))
    prompt = list(range(100, 150))
    cached(engine, fake, fake.request("a", prompt, max_tokens=1))
    assert engine.pool.states.num_cached
    engine.pool.clear_cache()
    assert not engine.pool.states.num_cached
    assert cached(engine, fake, fake.request("b", prompt, max_tokens=1)) == 0
    for number in range(20):  # others take all blocks
        cached(engine, fake, fake.request(f"o{number}", [number] * 60, max_tokens=1))
    assert cached(engine, fake, fake.request("c", prompt, max_tokens=1)) == 0
    engine.check_integrity()


@pytest.mark.parametrize("ahead", [False, True])
def test_who_makes_a_step_raise_leaves_no_checkpoint(fake, ahead):
    engine = fake.engine(states=(40, 3), async_scheduling=ahead)
    model, prompt = fake.model(engine), list(range(50))
    own, failed = model._recur, []

    def fails_once(batch):
        own(batch)
        if not failed:
            failed.append(True)
            model.kept[:] = 12345  # nothing that was written is right
            raise RuntimeError

    model._recur = fails_once
    engine.add(fake.request("a", prompt, max_tokens=9))
    engine.add(fake.request("b", prompt, max_tokens=9))
    said = fake.run(engine)
    assert failed
    assert said["a"][0] == said["b"][0] == fake.expected(prompt, 9)


def test_settings_that_need_tokens_given_back_are_refused(fake):
    for settings in ({"speculation": True}, {"record": "folder"}):
        with pytest.raises(ConfigError, match="recurrent layers"):
            fake.engine(states=STATES, **settings)


def test_more_sequences_than_there_are_states_for_do_not_run_at_once(fake):
    engine = fake.engine(states=(6, 3), max_num_seqs=8)
    assert engine.config.max_num_seqs == 3
    for number in range(9):
        engine.add(fake.request(f"r{number}", [number] * 9, max_tokens=20))
    said = fake.run(engine)
    assert all(said[f"r{number}"][0] == fake.expected([number] * 9, 20) for number in range(9))
    assert engine.stats().counters.preemptions == 0
    assert dataclasses.asdict(engine.stats())["states"] == {"count": 6, "free": 6, "cached": 6, "num_bytes": 1}
