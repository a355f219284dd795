import itertools

import pytest

from octavo.cost_model import CostModel, StepWork
from octavo.errors import Overloaded


def test_a_batch_says_what_each_alone_would_say(fake):
    prompts = {f"r{i}": list(range(i, i + 3 + 7 * i)) for i in range(12)}
    engine = fake.engine()
    for name, prompt in prompts.items():
        engine.add(fake.request(name, prompt, max_tokens=9))
    out = fake.run(engine)
    assert {name: tokens[0] for name, tokens in out.items()} == {n: fake.expected(p, 9) for n, p in prompts.items()}


@pytest.mark.parametrize("chunk", [1, 3, 4, 16, 500])
def test_chunked_prefill_changes_nothing_but_the_steps(fake, chunk):
    prompt = list(range(100))
    engine = fake.engine(max_num_batched_tokens=chunk)
    engine.add(fake.request("a", prompt, max_tokens=5))
    assert fake.run(engine)["a"][0] == fake.expected(prompt, 5)
    assert len(fake.model(engine).batches) == -(-100 // chunk) + 4


def test_running_streams_get_their_token_and_prompts_a_block_however_small_the_budget(fake):
    engine = fake.engine(max_num_batched_tokens=4, max_num_seqs=8)
    for i in range(8):
        engine.add(fake.request(f"r{i}", [i] * 4, max_tokens=30))
    fake.run(engine)
    assert max(batch.num_seqs for batch in fake.model(engine).batches) == 8


def test_the_first_update_says_how_long_the_prompt_took_to_compute(fake):
    """Not how long it waited: the second request waits for the first, whose place it takes."""
    engine = fake.engine(max_num_seqs=1)
    now = itertools.count(1)
    engine.scheduler._clock = lambda: float(next(now))
    for name in ("first", "second"):
        engine.add(fake.request(name, list(range(41)), max_tokens=9))
    updates = [update for _ in range(40) for update in engine.step()]
    for name in ("first", "second"):
        told = [update.prefill for update in updates if update.request_id == name]
        assert told[0] is not None
        assert 0 < told[0] < 9
        assert told[1:] == [None] * 8


def test_a_warm_prefix_is_not_computed_again(fake):
    engine = fake.engine()
    prompt = list(range(41))
    engine.add(fake.request("cold", prompt, max_tokens=3))
    fake.run(engine)
    fake.model(engine).batches.clear()
    engine.add(fake.request("warm", prompt, max_tokens=3))
    first = engine.step()[0]
    assert first.num_cached_tokens == 40
    assert fake.model(engine).batches[0].num_tokens == 1
    assert first.token_ids + fake.run(engine)["warm"][0] == fake.expected(prompt, 3)


@pytest.mark.parametrize("budget", [16, 44, 500])
def test_a_prefix_that_many_bring_at_once_is_computed_once(fake, budget):
    prefix, prompts = list(range(40)), {}
    engine = fake.engine(max_num_batched_tokens=budget)
    for i in range(8):
        prompts[f"r{i}"] = [*prefix, 100 + i, 200 + i]
        engine.add(fake.request(f"r{i}", prompts[f"r{i}"], max_tokens=3))
    out = fake.run(engine)
    assert {name: tokens[0] for name, tokens in out.items()} == {n: fake.expected(p, 3) for n, p in prompts.items()}
    assert sum(batch.num_tokens for batch in fake.model(engine).batches) == 40 + 8 * 2 + 8 * 2
    assert engine.stats().counters.cached_tokens == 7 * 40


def test_a_step_that_fails_leaves_nothing_in_the_cache(fake):
    engine = fake.engine()
    prompt = list(range(40))
    engine.add(fake.request("a", prompt, max_tokens=3))
    launch = engine.executor.launch
    engine.executor.launch = lambda batch: 1 / 0
    engine.step()
    assert engine.pool.num_cached == 0
    engine.abort("a")
    engine.executor.launch = launch
    engine.add(fake.request("b", prompt, max_tokens=3))
    assert fake.run(engine)["b"][0] == fake.expected(prompt, 3)


def test_a_fully_cached_prompt_still_computes_its_last_block(fake):
    engine = fake.engine()
    for name in ("cold", "warm"):
        engine.add(fake.request(name, list(range(40)), max_tokens=2))
        assert fake.run(engine)[name][0] == fake.expected(list(range(40)), 2)
    assert engine.stats().counters.cached_tokens == 36


def test_salts_and_the_switch_keep_prefixes_apart(fake):
    for settings, salts in (({}, ("a", "b")), ({"enable_prefix_caching": False}, ("", ""))):
        engine = fake.engine(**settings)
        for i, salt in enumerate(salts):
            engine.add(fake.request(f"r{i}", list(range(40)), cache_salt=salt, max_tokens=2))
            fake.run(engine)
        assert engine.stats().counters.cached_tokens == 0


def test_n_sequences_share_the_prompts_full_blocks_and_copy_the_last(fake):
    engine = fake.engine(num_blocks=256)
    prompt = list(range(102))  # 25 full blocks of 4 and half a block
    engine.add(fake.request("a", prompt, seed=7, n=8, max_tokens=3))
    while engine.scheduler.state().num_running < 8:
        engine.step()
    engine.step()
    assert engine.pool.num_owned == 25 + 8  # one copy of the prompt's full blocks; seven copies of the partial one
    out = fake.run(engine)["a"]
    group_seed = [(7 + i * 0x9E3779B97F4A7C15) % 2**64 for i in range(8)]
    for i in range(8):
        assert out[i][-1] == fake.expected(prompt, 3, group_seed[i])[-1]


def started(engine):
    """Step until idle; the step in which each sequence spoke first, and what each said."""
    first, said, step = {}, {}, 0
    while engine.has_work:
        step += 1
        for update in engine.step():
            first.setdefault((update.request_id, update.index), step)
            said.setdefault((update.request_id, update.index), []).extend(update.token_ids)
        engine.check_integrity()
    return first, said


def busy_engine(fake, **settings):
    """Eight places, all taken by streams that end after 10, 20, ... 80 tokens."""
    engine = fake.engine(num_blocks=600, max_num_batched_tokens=200, **settings)
    for i in range(8):
        engine.add(fake.request(f"busy{i}", [i, 2], max_tokens=10 * (i + 1)))
    engine.step()
    return engine


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("caching", [True, False])
def test_a_large_n_holds_nobody_up_and_keeps_no_place(fake, ahead, caching):
    engine = busy_engine(fake, async_scheduling=ahead, enable_prefix_caching=caching)
    prompt = list(range(100, 142))
    engine.add(fake.request("large", prompt, seed=7, n=32, max_tokens=50))
    for i in range(3):
        engine.add(fake.request(f"short{i}", [300 + i], max_tokens=2))
    fake.model(engine).batches.clear()
    first, said = started(engine)
    assert first["large", 0] < first["short0", 0] <= 25
    assert max(first[f"short{i}", 0] for i in range(3)) <= 45  # the fourth stream has just ended
    assert (
        max(first["large", i] for i in range(32)) <= 300
    )  # 32 times 50 tokens on eight places, and the streams before
    for i in range(32):
        assert said["large", i] == fake.expected(prompt, 50, (7 + i * 0x9E3779B97F4A7C15) % 2**64)
    # The prompt is computed once; each of those that come late computes what a full block does not hold.
    computed = sum(batch.num_tokens for batch in fake.model(engine).batches)
    assert computed <= 42 + 31 * 2 + 32 * 49 + 360 + 3 * 2


def test_late_sequences_and_new_requests_take_turns_for_ever(fake):
    engine = busy_engine(fake, max_num_queued_requests=1000)
    for name in ("large", "other"):
        engine.add(fake.request(name, [1, 2, 3], n=20, max_tokens=10))
    for i in range(100):
        engine.add(fake.request(f"short{i}", [i], max_tokens=10))
    first, said = started(engine)
    assert len(said) == 8 + 2 * 20 + 100
    ends = [max(first[name, i] for i in range(20)) for name in ("large", "other")]
    shorts = sorted(first[f"short{i}", 0] for i in range(100))
    assert shorts[10] < max(ends) < shorts[50]  # some go before the two have all begun, and not all do


def test_a_priority_goes_before_the_late_sequences_of_a_lower_one(fake):
    engine = fake.engine(max_num_seqs=1)
    engine.add(fake.request("large", [1, 2], n=4, max_tokens=3, priority=1))
    engine.step()
    engine.add(fake.request("urgent", [5], max_tokens=3))
    engine.add(fake.request("later", [6], max_tokens=3, priority=2))
    first, _ = started(engine)
    assert first["urgent", 0] < first["large", 1] < first["large", 3] < first["later", 0]


def test_a_late_sequence_that_is_dropped_hands_its_turn_on(fake):
    engine = fake.engine(max_num_seqs=1)
    engine.add(fake.request("a", [1, 2], n=4, max_tokens=3))
    engine.step()
    assert [update.index for update in engine.abort("a", 1)] == [1]
    first, _ = started(engine)
    assert sorted(index for _, index in first) == [0, 2, 3]
    engine.add(fake.request("b", [1, 2], n=4, max_tokens=3))
    engine.step()
    assert [update.index for update in engine.abort("b")] == [0, 1]
    assert not engine.has_work


def test_filled_slots_count_what_owned_blocks_hold(fake):
    engine = fake.engine(num_blocks=200)
    prompt = list(range(30))
    for i in range(4):
        engine.add(fake.request(f"r{i}", prompt[: 10 + 6 * i], n=1 + i % 2, max_tokens=9))
    while engine.has_work:
        engine.step()
        held: dict[int, int] = {}
        for seq in engine.scheduler._running:
            for place, block in enumerate(seq.table.blocks):
                held[block] = max(held.get(block, 0), min(4, seq.num_computed - 4 * place))
        assert engine.stats().filled_slots == sum(held.values())


def test_forced_preemption_changes_nothing(fake):
    prompts = {f"r{i}": list(range(i, i + 20)) for i in range(6)}
    # enough blocks for three or four of them at full length, and a context as long as the pool
    engine = fake.engine(num_blocks=40, max_model_len=100)
    for name, prompt in prompts.items():
        engine.add(fake.request(name, prompt, max_tokens=40))
    out = fake.run(engine)
    assert engine.stats().counters.preemptions > 0
    assert {name: tokens[0] for name, tokens in out.items()} == {n: fake.expected(p, 40) for n, p in prompts.items()}


def broken_off(fake, steps, **params):
    """What each sequence of a request had said after some steps (None when it had ended), and what it says at last."""
    whole, half = fake.engine(), fake.engine()
    for engine in (whole, half):
        engine.add(fake.request("a", list(range(30)), seed=3, **params))
    said = {index: [] for index in range(params.get("n", 1))}
    ended = set()
    for _ in range(steps):
        for update in half.step():
            said[update.index] += update.token_ids
            ended |= {update.index} if update.finish_reason else set()
    return [None if index in ended else tokens for index, tokens in said.items()], fake.run(whole)["a"], said


@pytest.mark.parametrize("params", [{}, {"n": 3}, {"min_tokens": 9, "frequency_penalty": 0.5}], ids=str)
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_a_request_goes_on_where_another_shard_left_it(fake, steps, params):
    emitted, unbroken, said = broken_off(fake, steps, max_tokens=12, **params)
    engine = fake.engine()
    request = fake.request("a", list(range(30)), seed=3, max_tokens=12, **params)
    request.emitted = emitted
    engine.add(request)
    rest = fake.run(engine)["a"]
    assert {index: said[index] + rest[index] for index in rest} == unbroken


def test_of_a_request_that_goes_on_only_the_living_sequences_do(fake):
    stops = fake.expected(list(range(30)), 3, 3)[2:]  # ends the first of the three after its third token
    emitted, unbroken, said = broken_off(fake, 5, n=3, max_tokens=12, stop_token_ids=stops)
    assert emitted[0] is None
    engine = fake.engine(max_num_queued_requests=1)
    request = fake.request("a", list(range(30)), seed=3, n=3, max_tokens=12, stop_token_ids=stops)
    request.emitted = emitted
    engine.add(request)
    rest = fake.run(engine)["a"]
    assert {index: said[index] + rest.get(index, []) for index in said} == unbroken


def test_a_request_that_goes_on_starts_before_those_that_wait_whatever_the_queue(fake):
    engine = fake.engine(max_num_seqs=1, max_num_queued_requests=1)
    for name in ("runs", "waits"):
        engine.add(fake.request(name, [1, 2], max_tokens=3))
    resumed = fake.request("resumed", [1, 2], max_tokens=3)
    resumed.emitted = [fake.expected([1, 2], 1)]
    engine.add(resumed)
    ends = []
    while engine.has_work:
        ends += [update.request_id for update in engine.step() if update.finish_reason]
    assert ends.index("resumed") < ends.index("waits")


def test_priority_then_arrival_decides_who_runs_and_who_is_preempted(fake):
    engine = fake.engine(max_num_seqs=1)
    for name, priority in (("first", 0), ("low", 5), ("high", -5)):
        engine.add(fake.request(name, [1, 2], priority=priority, max_tokens=2))
    order = []
    while engine.has_work:
        order += [u.request_id for u in engine.step() if u.finish_reason]
    assert order == ["high", "first", "low"]


def test_abort_frees_at_once_wherever_the_request_is(fake):
    engine = fake.engine(max_num_seqs=2)
    for i in range(4):
        engine.add(fake.request(f"r{i}", list(range(10)), max_tokens=50))
    engine.step()
    for i in range(4):
        assert [u.finish_reason for u in engine.abort(f"r{i}")] == ["abort"]
        engine.check_integrity()
    assert not engine.has_work
    assert engine.pool.num_owned == 0
    assert engine.abort("r0") == []


def test_abort_of_one_of_n(fake):
    engine = fake.engine()
    engine.add(fake.request("a", list(range(10)), n=3, max_tokens=5))
    engine.step()
    engine.abort("a", 1)
    out = fake.run(engine)
    assert sorted(out["a"]) == [0, 2]


def test_stop_rules(fake):
    prompt = [1, 2, 3]
    said = fake.expected(prompt, 20)
    engine = fake.engine()

    def ask(**params):
        engine.add(fake.request("a", prompt, **params))
        while engine.has_work:
            last = [u for u in engine.step() if u.finish_reason]
        return last[0]

    assert ask(max_tokens=4).finish_reason == "length"
    stopped = ask(max_tokens=20, stop_token_ids=[said[5]])
    assert (stopped.finish_reason, stopped.stop_reason, stopped.token_ids) == ("stop", said[5], [said[5]])
    assert ask(max_tokens=20, stop_token_ids=[said[5]], min_tokens=7).finish_reason == "length"
    assert fake.model(engine).batches[-8].sampling.banned == {}
    assert any([*map(list, b.sampling.banned.values())] == [[said[5]]] for b in fake.model(engine).batches)


def test_values_that_are_not_finite_end_their_own_request_only(fake):
    engine = fake.engine()
    fake.model(engine).fail_tokens = {999}
    engine.add(fake.request("bad", [1, 999], max_tokens=5))
    engine.add(fake.request("good", [1, 2], max_tokens=5))
    reasons = {}
    while engine.has_work:
        reasons |= {u.request_id: u.finish_reason for u in engine.step() if u.finish_reason}
    assert reasons == {"bad": "error", "good": "length"}


def test_huge_numbers_that_mean_no_limit_do_no_harm(fake):
    engine = fake.engine()
    engine.add(fake.request("a", [1, 2], top_k=10**12, max_tokens=10**15, seed=-5, priority=10**15))
    assert len(fake.run(engine)["a"][0]) == engine.limits.max_model_len - 2


def test_the_prompts_numbers_are_said_once_however_many_sequences(fake):
    engine = fake.engine()
    engine.add(fake.request("a", list(range(30)), max_tokens=2, prompt_logprobs=0, n=4))
    updates = [update for _ in range(4) for update in engine.step()]
    assert len({update.index for update in updates}) == 4
    assert [update.prompt_logprobs is not None for update in updates] == [True] + [False] * (len(updates) - 1)


def test_prompt_logprobs_cover_every_position_and_skip_the_cache(fake):
    engine = fake.engine(max_num_batched_tokens=7)
    for name in ("warm-up", "a"):
        engine.add(fake.request(name, list(range(30)), max_tokens=2, prompt_logprobs=0))
        updates = []
        while engine.has_work:
            updates += engine.step()
    assert updates[0].num_cached_tokens == 0
    first, *rest = updates[0].prompt_logprobs
    assert first is None
    assert [list(entry) for entry in rest] == [[t] for t in range(1, 30)]


def test_a_full_queue_refuses_and_keeps_what_it_has(fake):
    engine = fake.engine(max_num_queued_requests=2, max_num_seqs=1)
    for name in "abc":  # one can start, two may wait
        engine.add(fake.request(name, [1], max_tokens=2))
    with pytest.raises(Overloaded) as raised:
        engine.add(fake.request("d", [1]))
    assert raised.value.retry_after == 0, "no step was measured"
    assert sorted(fake.run(engine)) == ["a", "b", "c"]


def test_the_target_itl_shrinks_the_chunk_only_beside_running_streams(fake):
    engine = fake.engine(num_blocks=1024, max_num_batched_tokens=512, target_itl=0.010)
    engine.scheduler.cost_model = model = CostModel()
    for tokens in (1, 10, 100, 200, 50, 300, 20, 400, 64, 128):
        work = StepWork(tokens, 1, tokens, 0, has_prompts=tokens > 1)
        model.observe(work, 1e-3 + 1e-4 * tokens)  # 0.1 ms per token, 1 ms per step
    engine.add(fake.request("long", list(range(600)), max_tokens=2))
    assert engine.scheduler.schedule().num_tokens == 512
    engine = fake.engine(num_blocks=1024, max_num_batched_tokens=512, target_itl=0.010)
    engine.add(fake.request("stream", [1, 2], max_tokens=500))
    engine.step()
    engine.scheduler.cost_model = model
    engine.add(fake.request("long", list(range(600)), max_tokens=2))
    assert 80 <= engine.scheduler.schedule().num_tokens <= 95  # (10 ms - 1 ms) / 0.1 ms


def test_a_share_of_the_cache_keeps_what_a_flood_would_take(fake):
    """Quiet's prompt of eight blocks stays, or goes, while another tenant sends five times what the pool holds."""
    found = {}
    for share in (None, 0.3):
        engine = fake.engine(40)
        prompts = [("quiet", 0), *(("noisy", i) for i in range(1, 26)), ("quiet", 0)]
        for number, (tenant, i) in enumerate(prompts):
            request = fake.request(f"r{number}", [i] * 32, max_tokens=1)
            request.tenant, request.cache_share = tenant, share if tenant == "noisy" else None
            engine.add(request)
            fake.run(engine)
        found[share] = engine.scheduler.counters.cached_tokens
    assert found == {None: 0, 0.3: 28}
