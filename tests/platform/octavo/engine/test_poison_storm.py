"""Poison, suspects, aborts, forks, preemption and moved requests at once: only poisons are told another thing."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import Overloaded

MIX = 0x9E3779B97F4A7C15  # between the seeds of a request's sequences


class Poison(Exception):
    """What a poisoned step raises."""


def poisoned(model, tokens, rng):
    """Steps with one of these tokens raise, at their launch or when their result is asked for."""
    launch = model.launch

    def look(batch):
        if set(batch.token_ids.tolist()).isdisjoint(tokens):
            return launch(batch)
        if rng.random() < 0.5:
            raise Poison
        if rng.random() < 0.5:
            launch(batch)  # it has written what it should

        def wait():
            raise Poison

        return wait

    model.launch = look


def storm(fake, seed, operations, **settings):
    rng = random.Random(seed)
    bad = {rng.randrange(1, fake.VOCAB) for _ in range(rng.randrange(12))}  # not 0: the token of the control step
    engine = fake.engine(
        num_blocks=rng.choice([30, 60, 150]), max_model_len=120, max_num_seqs=rng.choice([1, 2, 4, 16]),
        max_num_batched_tokens=rng.choice([3, 8, 32, 200]), max_num_queued_requests=30,
        enable_prefix_caching=rng.random() < 0.7, **settings,
    )  # fmt: skip
    poisoned(fake.model(engine), bad, rng)
    prefixes = [[rng.randrange(fake.VOCAB) for _ in range(40)] for _ in range(4)]
    asked, said, ended, dropped, turns = {}, {}, {}, set(), {}

    def take(updates):
        for update in updates:
            key = (update.request_id, update.index)
            assert key not in ended, "an ended sequence spoke again"
            if not update.token_ids and update.finish_reason is None:
                turns[update.request_id] = turns.get(update.request_id, 0) + 1
            said.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason:
                ended[key] = update.finish_reason

    def expected(request, index):
        """Tokens, and whether poison ends them."""
        before = request.emitted[index] if request.emitted else []
        prompt = request.prompt_token_ids
        limit = min(request.params.max_tokens, 120 - len(prompt))
        tokens = fake.expected(prompt, limit, (request.seed + index * MIX) % 2**64)
        computed = [*prompt, *before]
        if not bad.isdisjoint(computed):
            return [], True
        for place in range(len(before), limit - 1):
            if tokens[place] in bad:
                return tokens[len(before) : place + 1], True
        return tokens[len(before) :], False

    def add(number):
        prompt = rng.choice(prefixes)[: rng.randrange(41)] + [rng.randrange(fake.VOCAB)] * rng.randrange(1, 30)
        n = rng.choice([1, 1, 1, 2, 4, 20])
        extra = rng.choice([{}, {}, {"prompt_logprobs": 1}, {"logprobs": 1}, {"presence_penalty": 1.0}])
        request = fake.request(
            f"r{number}", prompt, rng.randrange(2**40), n=n, priority=rng.randrange(3),
            max_tokens=max(0, rng.randrange(-8, 60)), cache_salt=rng.choice(["", "", "x"]), **extra,
        )  # fmt: skip
        request.alone = rng.random() < 0.3
        limit = min(request.params.max_tokens, 120 - len(prompt))
        if limit and rng.random() < 0.3:
            lines = [fake.expected(prompt, limit, (request.seed + i * MIX) % 2**64) for i in range(n)]
            request.emitted = [line[: rng.randrange(limit)] for line in lines]
        try:
            engine.add(request)
            asked[request.request_id] = request
        except Overloaded:
            pass

    def step():
        take(engine.step())
        engine.check_integrity()
        engine.stats()

    for number in range(operations):
        dice = rng.random()
        if dice < 0.25:
            add(number)
        elif dice < 0.32 and asked:
            victim, index = rng.choice(list(asked)), rng.choice([None, None, 0, 1])
            dropped.add((victim, index))
            take(engine.abort(victim, index))
            engine.check_integrity()
        else:
            step()
    for _ in range(20_000):
        if not engine.has_work:
            break
        step()
    assert not engine.has_work
    assert not engine.isolation.trying
    assert engine.pool.num_owned == 0
    for request in asked.values():
        name = request.request_id
        lines = [expected(request, i) for i in range(request.params.n)]
        poison = any(dies for _, dies in lines)
        for i, (tokens, _) in enumerate(lines):
            found, reason = said.get((name, i), []), ended.get((name, i))
            assert found == tokens[: len(found)]
            if (name, None) in dropped or (name, i) in dropped:
                continue
            if poison:
                assert reason in ("error", "length") or (reason is None and dropped)
            else:
                assert reason == "length", (name, i, reason, found, tokens)
                assert found == tokens
    assert all(count in (1, 2) for count in turns.values())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), ahead=st.booleans())
def test_small_storms(fake, seed, ahead):
    storm(fake, seed, operations=80, async_scheduling=ahead)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_long_storm(fake, ahead):
    storm(fake, 5, operations=300, async_scheduling=ahead)
