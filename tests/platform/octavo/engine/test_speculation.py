"""Guessed tokens: where they pay they are proposed, elsewhere nothing is done; no answer changes."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.constraint import Grammar
from octavo.cost_model import CostModel, StepWork
from octavo.engine.speculation import Speculation
from octavo.errors import ConfigError
from octavo.request import Adapter

TEXT = Grammar(source='start: /[a-g]{3,60}/ "abc, the others are done" /[0-9]+/')
KINDS = [{}, {"n": 3}, {"logprobs": 2}, {"prompt_logprobs": 1}, {"stop_token_ids": [5]}, {"n": 2, "logprobs": 0},
         {"min_tokens": 9, "stop_token_ids": [5, 6]}, {"repetition_penalty": 1.2, "frequency_penalty": 0.3},
         {"cache_salt": "a"}, {"cache_salt": "b", "n": 2}, {"priority": 1}, {"grammar": TEXT, "n": 2},
         {"n": 2, "adapter": Adapter("a", "f0", "/")}, {"grammar": TEXT, "logprobs": 0},
         {"predicted": [3, 5] * 40, "n": 2}, {"bad_token_ids": [[3], [5, 7]]}]  # fmt: skip
EXAMPLES = int(os.environ.get("OCTAVO_SCHEDULES", "40"))


def parrot(fake, tokens: int = 12, seconds_each: float = 0.0, **config):
    """An engine whose model repeats itself, with surprises."""
    engine = fake.engine(**{"num_blocks": 400, "max_num_seqs": 20, "max_num_batched_tokens": 64, **config})
    fake.model(engine).parrot, fake.model(engine).seconds_each = tokens, seconds_each
    return engine


def told(engine, requests, aborts=()) -> dict:
    """What clients are told of requests that come, end early and go on elsewhere at some steps."""
    said: dict[tuple[str, int], list] = {}
    waiting, step = list(requests), 0
    while waiting or engine.has_work:
        for at, request in [each for each in waiting if each[0] <= step or not engine.has_work]:
            engine.add(request)
            waiting.remove((at, request))
        updates = engine.step()
        for at, name in aborts:
            if at == step:
                engine.abort(name)
        for update in updates:
            said.setdefault((update.request_id, update.index), []).append(update)
        engine.check_integrity()
        step += 1
    assert engine.pool.num_owned == 0
    return said


def answers(said, without=()) -> dict:
    return {
        key: (
            [token for update in updates for token in update.token_ids],
            [entry for update in updates for entry in update.logprobs or ()],
            updates[0].prompt_logprobs,
            (updates[-1].finish_reason, updates[-1].stop_reason, round(updates[-1].cumulative_logprob, 9)),
        )
        for key, updates in said.items()
        if key[0] not in without
    }


def requests_of(fake, rng: random.Random, count: int) -> list:
    made = []
    for i in range(count):
        prompt = [rng.randrange(12) for _ in range(rng.choice([1, 9, 40]))]
        params = {"seed": rng.randrange(99), "max_tokens": rng.choice([9, 40, 90]), **rng.choice(KINDS)}
        request = fake.request(f"r{i}", prompt, **params)
        if rng.random() < 0.2 and params.get("n", 1) == 1:  # another shard had begun to answer
            request.emitted = [[rng.randrange(12) for _ in range(4)]]
        made.append((rng.randrange(60), request))
    return made


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**20),
    ahead=st.booleans(),
    num_blocks=st.sampled_from([400, 60]),
    caching=st.booleans(),
    chunk=st.sampled_from([9, 64]),
    tokens=st.sampled_from([3, 12]),
    seconds_each=st.sampled_from([0.0, 2e-4]),
    drafts=st.sampled_from([None, {"astray": 0}, {"astray": 4}, {"astray": 4, "num_blocks": 40}]),
)
def test_no_schedule_changes_an_answer(
    fake, tiny_tokenizer, seed, ahead, num_blocks, caching, chunk, tokens, seconds_each, drafts
):
    world = {"num_blocks": num_blocks, "enable_prefix_caching": caching, "max_num_batched_tokens": chunk}
    world["tokenizer"] = tiny_tokenizer
    drafter = drafts and fake.drafter(parrot=tokens, caching=caching, **drafts)
    rng = random.Random(seed)
    aborts = [(rng.randrange(60), f"r{rng.randrange(9)}") for _ in range(2)]
    asked = [requests_of(fake, random.Random(seed), 9) for _ in range(2)]
    theirs = told(parrot(fake, tokens, seconds_each, speculation=False, **world), asked[0], aborts)
    own = {"speculation": True, "async_scheduling": ahead, "drafter": drafter}
    ours = told(parrot(fake, tokens, seconds_each, **own, **world), asked[1], aborts)
    gone = {name for _, name in aborts}  # they end after as many tokens as they had
    assert answers(ours, gone) == answers(theirs, gone)


def steps_of(fake, engine, *prompts, **params) -> int:
    before = len(fake.model(engine).batches)
    for i, prompt in enumerate(prompts):
        engine.add(fake.request(f"r{i}", prompt, **params))
    fake.run(engine)
    return len(fake.model(engine).batches) - before


@pytest.mark.parametrize("ahead", [False, True])
def test_a_repetition_takes_fewer_steps(fake, ahead):
    plain = steps_of(fake, parrot(fake, 3, speculation=False), [1, 2], max_tokens=200)
    engine = parrot(fake, 3, speculation=True, async_scheduling=ahead)
    assert steps_of(fake, engine, [1, 2], max_tokens=200) < plain / 2
    counters = engine.stats().counters
    assert counters.accepted == sorted(counters.accepted, reverse=True)
    assert counters.drafts >= counters.accepted[0] > 0
    assert plain == 200
    assert sum(counters.accepted) <= counters.proposed


def test_nothing_is_proposed_where_rows_are_dear(fake):
    engine = parrot(fake, 3, seconds_each=0.1, speculation=True, max_num_seqs=64)
    steps_of(fake, engine, *([i, 2] for i in range(20)), max_tokens=200)
    assert engine.stats().counters.proposed < 30


@pytest.mark.parametrize("streams", [4, 8, 16])
@pytest.mark.parametrize("astray", [0, 3, 10])
def test_a_row_on_the_next_stair_is_as_dear_as_it_is(fake, streams, astray):
    """As of a CPU: 2.6 ms for one row, 3.8 for four, 4.8 for five. What that row takes is measured."""
    took = {}
    for guesses in (False, True):
        engine = parrot(fake, 3, speculation=guesses, max_num_seqs=64, num_blocks=3000)
        model = fake.model(engine)
        model.seconds, model.seconds_each, model.stair, model.astray = 1.6e-3, 4e-4, 6e-4, astray
        steps_of(fake, engine, *([i, 2] for i in range(streams)), max_tokens=400)
        took[guesses] = sum(model.seconds_of(batch.num_tokens) for batch in model.batches)
    assert took[True] < 1.01 * took[False]


def test_what_repeats_nothing_is_left_alone(fake):
    for ahead in (False, True):
        engine = fake.engine(speculation=True, async_scheduling=ahead, num_blocks=400)
        assert steps_of(fake, engine, [1, 2], [3, 4], max_tokens=200) <= 201
        assert engine.stats().counters.proposed == 0


def test_an_answer_is_found_again_in_its_own_namespace_alone(fake):
    def proposed(salt: str) -> int:
        before = engine.stats().counters.proposed
        engine.add(fake.request(f"r{salt}{before}", [1, 2, 3], max_tokens=100, cache_salt=salt))
        fake.run(engine)
        return engine.stats().counters.proposed - before

    engine = fake.engine(speculation=True, num_blocks=400)
    assert proposed("a") == 0
    assert proposed("a") > 50
    assert proposed("b") == 0
    assert proposed("b") > 50


@pytest.mark.parametrize("ahead", [False, True])
def test_a_prediction_is_guessed_from_the_first_token(fake, ahead):
    truth = fake.expected([1, 2, 3], 60)
    edited = [*truth[:20], 7, 7, 7, 7, *truth[22:50], 8]
    engine = fake.engine(speculation=True, num_blocks=400, async_scheduling=ahead)
    steps_of(fake, engine, [9, 9], max_tokens=20)  # teaches what steps cost
    steps, told_of = {}, {}
    for name, predicted in (("plain", None), ("right", truth), ("edited", edited)):
        request = fake.request(name, [1, 2, 3], max_tokens=60, cache_salt=name)
        request.predicted = predicted
        before = len(fake.model(engine).batches)
        told_of[name] = [update for updates in told(engine, [(0, request)]).values() for update in updates]
        steps[name] = len(fake.model(engine).batches) - before
        assert [t for update in told_of[name] for t in update.token_ids] == truth
    assert steps["right"] < steps["edited"] < steps["plain"]
    assert steps["right"] < 15
    kept = {name: sum(update.num_accepted for update in updates) for name, updates in told_of.items()}
    lost = {name: sum(update.num_rejected for update in updates) for name, updates in told_of.items()}
    assert kept["plain"] == lost["plain"] == lost["right"] == 0
    assert 60 > kept["right"] > 40 > kept["edited"] > 20
    assert lost["edited"] > 0
    assert sum(map(sum, engine.stats().counters.by_origin.values())) == sum(kept.values()) * 2 + sum(lost.values())


def test_an_abort_leaves_nothing(fake):
    engine = parrot(fake, 3, speculation=True)
    engine.add(fake.request("r", [1, 2], max_tokens=900))
    for _ in range(30):
        engine.step()
    (seq,) = engine.scheduler.sequences("r")
    assert seq.followed is not None
    engine.abort("r")
    assert seq.followed is None
    assert engine.pool.num_owned == 0


def test_a_rehearsal_and_steps_in_advance_guess_nothing_unless_asked(fake):
    assert fake.engine().scheduler.proposer is not None
    assert fake.engine(async_scheduling=True).scheduler.proposer is None
    assert fake.engine(speculation=False).scheduler.proposer is None
    assert fake.engine(speculation=True, async_scheduling=True).scheduler.proposer is not None
    with pytest.raises(ConfigError, match="speculation must be true, false, null or"):
        fake.engine(speculation="suffix")


PROMPTS = [[7, 8, 9, 10] * 12, list(range(40)) + list(range(20)), "Once upon a time, once upon a time, once upon"]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=60),
    SamplingParams(n=2, temperature=0.3, seed=1, max_tokens=60, logprobs=2),
    SamplingParams(temperature=0.4, seed=3, min_tokens=9, max_tokens=60, frequency_penalty=-0.5, stop=["zz"]),
]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_real_model_says_the_same(tiny_model, ahead):
    shared = {"dtype": "float32", "kv_cache_bytes": 2**19, "progress": False}
    plain = LLM(str(tiny_model("llama3")), speculation=False, **shared)
    guessing = LLM(str(tiny_model("llama3")), speculation=True, async_scheduling=ahead, **shared)
    free = CostModel()
    for rows in range(1, 10):
        free.observe(StepWork(rows, rows, 0, 0, has_prompts=False), 1.0)
    guessing.engine.scheduler.proposer = Speculation(free, 64, 1 + ahead)
    theirs = view(plain.generate(PROMPTS, PARAMS, use_tqdm=False))
    for _ in range(2):
        assert view(guessing.generate(PROMPTS, PARAMS, use_tqdm=False)) == theirs
    assert sum(guessing.engine.stats().counters.accepted) > 100
    plain.close()
    guessing.close()


def view(outputs) -> list[tuple]:
    return [(line.token_ids, line.text, line.finish_reason) for output in outputs for line in output.outputs]
