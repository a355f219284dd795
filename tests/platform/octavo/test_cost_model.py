import random

import numpy as np
import pytest

from octavo.cost_model import NO_COST, CostModel, StepWork, attended

TRUE = (2e-3, 1e-4, 5e-5, 2e-8, 2e-7)


def truth(tokens, sequences, attended, context):
    a, b, c, d, e = TRUE
    return a + b * tokens + c * sequences + d * attended + e * context


def work(tokens, sequences, attended, context):
    return StepWork(tokens, sequences, attended, context, has_prompts=tokens > sequences)


def observe(model, step, seconds):
    model.observe(work(*step), seconds)


def predict(model, step):
    return model.predict(work(*step))


@pytest.mark.parametrize("start", [0, 1, 17, 5000])
@pytest.mark.parametrize("count", [0, 1, 2, 511, 512])
def test_attended_is_the_sum_over_the_tokens_of_what_each_sees(start, count):
    assert attended(start, count) == sum(position + 1 for position in range(start, start + count))
    assert attended(np.array([start, 3]), np.array([count, 2])).tolist() == [attended(start, count), 4 + 5]


def test_a_sequence_cut_into_chunks_attends_to_as_much():
    assert attended(7, 100) == attended(7, 33) + attended(40, 66) + attended(106, 1)


def ordinary_step(rng):
    decodes = rng.randrange(0, 40)
    prefill = rng.choice([0, 0, rng.randrange(1, 500)])
    context = decodes * rng.randrange(50, 900)
    attended = context + prefill * prefill // 2
    return decodes + prefill, decodes + (prefill > 0) or 1, attended, context + prefill


def test_it_learns_and_follows():
    rng = random.Random(0)
    model = CostModel()
    for speed in (1.0, 2.0):  # the machine becomes half as fast
        for _ in range(600):
            step = ordinary_step(rng)
            observe(model, step, speed * truth(*step) * rng.uniform(0.95, 1.05))
        for _ in range(20):
            step = ordinary_step(rng)
            assert predict(model, step) == pytest.approx(speed * truth(*step), rel=0.15, abs=1e-3)


def test_one_stalled_step_bends_nothing():
    rng = random.Random(1)
    model = CostModel()
    for _ in range(300):
        step = ordinary_step(rng)
        observe(model, step, truth(*step))
    stalled = 100, 5, 5000, 5000
    before = predict(model, stalled)
    observe(model, stalled, 10.0)
    assert predict(model, stalled) < 1.5 * before


def test_the_chunk_keeps_to_its_target():
    rng = random.Random(2)
    model = CostModel()
    decoding = work(4, 4, 1000, 1000)
    assert model.tokens_within(0.02, decoding, 0) is None
    for _ in range(300):
        step = ordinary_step(rng)
        observe(model, step, truth(*step))
    chunk = model.tokens_within(0.02, decoding, 100)
    assert truth(4 + chunk, 5, 1000 + 100 * chunk, 1100) == pytest.approx(0.02, rel=0.1)
    assert model.tokens_within(1e-9, decoding, 0) == 0


def roofline(tokens, sequences, attended, context):
    """No five numbers explain this: reading and multiplying overlap."""
    return 1e-3 + 1e-5 * sequences + max(6.4e-3 + 49e-9 * context, 30e-6 * tokens + 1.06e-9 * attended)


@pytest.mark.parametrize("run", [5, 100, 1500])
def test_a_machine_of_another_kind_is_still_predicted_roughly(run):
    rng = random.Random(3)
    model = CostModel()
    decodes = context = 1000
    for i in range(6000):
        if i % 50 == 0:
            decodes = rng.randint(1, 64)
            context = decodes * rng.choice([200, 3000])
        prompt, start = (2048, rng.randint(0, 30_000)) if i // run % 2 else (0, 0)
        attended = context + prompt * start + prompt * prompt // 2
        step = decodes + prompt, decodes + (prompt > 0), attended, context + start + prompt
        if i > 2 * run:
            assert 0.5 < predict(model, step) / roofline(*step) < 2
        observe(model, step, roofline(*step) * rng.lognormvariate(0, 0.1) + (rng.random() < 0.002))


def test_minutes_of_decoding_do_not_wash_out_what_prompts_cost():
    rng = random.Random(4)
    model = CostModel()
    for _ in range(300):
        step = ordinary_step(rng)
        observe(model, step, truth(*step))
    for i in range(5000):
        step = (1, 1, 100 + i % 500, 100 + i % 500)
        observe(model, step, truth(*step) * rng.uniform(0.95, 1.05))
    prompt = (500, 1, 500 * 250, 500)
    assert predict(model, prompt) == pytest.approx(truth(*prompt), rel=0.2)


def test_first_steps_are_not_published():
    """A cold start is slow; others must not take it for the machine's speed."""
    model = CostModel()
    for _ in range(7):
        observe(model, (16, 1, 128, 16), 0.5)
    assert model.published == NO_COST
    observe(model, (16, 1, 128, 16), 0.5)
    assert model.published == model.coefficients
    assert any(model.published)
