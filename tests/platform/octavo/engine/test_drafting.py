"""A draft model changes no token, saves steps where it is right, and is left alone where it does not pay."""

from __future__ import annotations

import pytest

from octavo.constraint import Grammar


def run(fake, drafter, *prompts, before=(), **options):
    """Steps, tokens and the engine of requests, after others that taught what steps cost."""
    params = {"max_tokens": 100, **options.pop("params", {})}
    engine = fake.engine(drafter=drafter, speculation=True, num_blocks=400, max_num_batched_tokens=64, **options)
    for i, prompt in enumerate(before):
        engine.add(fake.request(f"b{i}", prompt, max_tokens=20))
    fake.run(engine)
    steps = len(fake.model(engine).batches)
    for i, prompt in enumerate(prompts):
        engine.add(fake.request(f"r{i}", prompt, seed=i, **params))
    said = fake.run(engine)
    for i, prompt in enumerate(prompts):
        assert said[f"r{i}"][0] == fake.expected(prompt, params["max_tokens"], i)
    return len(fake.model(engine).batches) - steps, engine


PROMPT = list(range(50))


@pytest.mark.parametrize("ahead", [False, True])
def test_a_good_draft_saves_steps(fake, ahead):
    drafter = fake.drafter(astray=9)
    steps, engine = run(fake, drafter, PROMPT, before=[[7]], async_scheduling=ahead)
    assert steps < 60
    proposed, right = engine.stats().counters.by_origin["draft"]
    assert 0.5 < right / proposed < 1
    assert drafter.pool.num_owned == 0
    engine.close()
    assert drafter.executor.closed
    assert engine.stats().steps


def test_several_sequences_share_passes(fake):
    drafter = fake.drafter()
    run(fake, drafter, PROMPT, [3, *PROMPT], [4], before=[[7]])
    assert max(batch.num_seqs for batch in drafter.executor.batches) >= 3


def test_a_draft_that_is_wrong_is_left_alone(fake):
    drafter = fake.drafter(astray=1, seconds=1e-4)
    steps, engine = run(fake, drafter, [1, 2], [3, 4], before=[[7]], params={"max_tokens": 400})
    assert steps <= 401
    assert engine.stats().counters.by_origin["draft"][0] < 60
    passes = len(drafter.executor.batches)
    engine.add(fake.request("again", [5], max_tokens=100))
    fake.run(engine)
    assert len(drafter.executor.batches) - passes < 12


@pytest.mark.parametrize(("seconds", "each", "most"), [(5e-3, 0.0, 0), (1e-5, 1e-1, 16)])
def test_no_pass_is_run_where_passes_or_rows_are_dear(fake, seconds, each, most):
    """What a row takes shows in the first steps that have several."""
    drafter = fake.drafter(seconds=seconds)
    engine = fake.engine(drafter=drafter, speculation=True, num_blocks=400, max_num_batched_tokens=64)
    fake.model(engine).seconds_each = each
    passes = len(drafter.executor.batches)
    for i in range(5):
        engine.add(fake.request(f"r{i}", [i], max_tokens=100))
    fake.run(engine)
    assert len(drafter.executor.batches) - passes <= most


def test_a_draft_that_its_grammar_forbids_is_left_alone(fake, tiny_tokenizer):
    drafter = fake.drafter(seconds=1e-4)  # right but for the grammar
    engine = fake.engine(drafter=drafter, speculation=True, num_blocks=400, tokenizer=tiny_tokenizer)
    passes = len(drafter.executor.batches)
    engine.add(fake.request("r", [1, 2], max_tokens=200, grammar=Grammar(source="start: /[a-z]{300}/")))
    fake.run(engine)
    assert 0 < len(drafter.executor.batches) - passes < 60  # 495 where what is forbidden teaches nothing


def test_a_draft_model_that_raises_is_given_up(fake, caplog):
    drafter = fake.drafter()
    engine = fake.engine(drafter=drafter, speculation=True, num_blocks=400)
    for _ in range(2):
        engine.add(fake.request("r", PROMPT, max_tokens=60))
        assert fake.run(engine)["r"][0] == fake.expected(PROMPT, 60)
        drafter.executor.launch = lambda batch: 1 / 0
    assert "is given up" in caplog.text
    assert drafter.executor.closed


def test_a_small_cache_and_a_short_context_bound_what_is_drafted(fake):
    drafter = fake.drafter(num_blocks=16)  # 64 tokens
    steps, _ = run(fake, drafter, [1, 2], before=[[7]])
    assert 40 < steps < 80
    assert drafter.pool.num_owned == 0


def test_nobody_waits_for_a_draft_that_never_comes(fake):
    drafter = fake.drafter()
    engine = fake.engine(drafter=drafter, speculation=True, num_blocks=400, async_scheduling=True)
    engine.add(fake.request("teaches costs", [7], max_tokens=20))
    fake.run(engine)
    steps, drafter.most_tokens = 0, 2
    engine.add(fake.request("too long", [1, 2, 3], max_tokens=100))
    while engine.has_work:
        steps += 1
        engine.step()
    assert steps < 110  # more where some are left out
