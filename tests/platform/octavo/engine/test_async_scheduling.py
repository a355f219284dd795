"""Steps that are planned while the one before runs: the same tokens, one step later."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.engine.batch import build_batch
from octavo.execution.background import with_tokens
from octavo_kernels.native import library

KINDS = [{}, {"n": 3}, {"presence_penalty": 1.0, "repetition_penalty": 1.2}, {"logit_bias": {5: 1.0}},
         {"min_tokens": 8, "stop_token_ids": list(range(0, 1000, 25))}, {"logprobs": 2},
         {"logprob_token_ids": [5, 9]}, {"prompt_logprobs": 1},
         {"stop_token_ids": list(range(0, 1000, 40))}]  # fmt: skip


def everything(fake, num_blocks: int, **settings):
    """Updates of one run over all kinds of requests, and the engine that ran it."""
    engine = fake.engine(num_blocks=num_blocks, max_num_seqs=12, **settings)
    shared = list(range(900, 930))
    for i in range(3 * len(KINDS)):
        prompt = shared[: 9 * (i % 4)] + list(range(1, 8 + i))
        engine.add(fake.request(f"r{i}", prompt, seed=i, max_tokens=10 + i, **KINDS[i % len(KINDS)]))
    told: dict[tuple[str, int], list] = {}
    while engine.has_work:
        for update in engine.step():
            told.setdefault((update.request_id, update.index), []).append(update)
        engine.check_integrity()
    return told, engine


def said(updates):
    """What a client is told, but for times and for what the cache held."""
    last = updates[-1]
    return (
        [token for update in updates for token in update.token_ids],
        [update.logprobs for update in updates],
        updates[0].prompt_logprobs,
        (last.finish_reason, last.stop_reason, last.cumulative_logprob),
    )


@pytest.mark.parametrize("num_blocks", [400, 60])  # the smaller pool preempts
@pytest.mark.parametrize("caching", [True, False])
def test_every_feature_says_the_same_as_one_step_at_a_time(fake, num_blocks, caching):
    theirs, _ = everything(fake, num_blocks, enable_prefix_caching=caching)
    ours, engine = everything(fake, num_blocks, enable_prefix_caching=caching, async_scheduling=True)
    assert {key: said(updates) for key, updates in ours.items()} == {key: said(u) for key, u in theirs.items()}
    assert (engine.stats().counters.preemptions > 0) == (num_blocks == 60)
    assert engine.pool.num_owned == 0
    if caching:
        assert engine.stats().counters.cached_tokens > 0


def test_a_step_is_planned_while_the_one_before_runs(fake):
    engine = fake.engine(async_scheduling=True)
    model = fake.model(engine)
    go, launch = threading.Semaphore(0), model.launch

    def when_told(batch):
        go.acquire()
        return launch(batch)

    model.launch = when_told
    engine.add(fake.request("r", [1, 2, 3], max_tokens=3))
    assert engine.step() == []
    assert model.batches == []  # begun, and nothing has run
    go.release(5)
    said = []
    while engine.has_work:
        said += [token for update in engine.step() for token in update.token_ids]
    assert said == fake.expected([1, 2, 3], 3)
    assert [batch.num_tokens for batch in model.batches] == [3, 1, 1]  # the limit is known beforehand


def test_a_failed_row_ends_alone(fake):
    engine = fake.engine(async_scheduling=True)
    fake.model(engine).fail_tokens.add(fake.expected([1, 2], 1)[0])
    engine.add(fake.request("bad", [1, 2], max_tokens=9))
    engine.add(fake.request("good", [3, 4], max_tokens=9))
    reasons = {}
    while engine.has_work:
        reasons |= {update.request_id: update.finish_reason for update in engine.step()}
    assert reasons == {"bad": "error", "good": "length"}
    assert engine.pool.num_owned == 0


def test_a_request_may_leave_while_a_step_computes_its_prompts_log_probabilities(fake):
    engine = fake.engine(async_scheduling=True)
    engine.add(fake.request("gone", list(range(100)), prompt_logprobs=1))
    engine.add(fake.request("stays", list(range(50)), prompt_logprobs=1, max_tokens=3))
    engine.step()  # the chunk of 32 tokens is all of the first's, and its result has not been taken
    engine.abort("gone")
    told = []
    while engine.has_work:
        told += engine.step()
    (first, *_) = told
    assert len(list(first.prompt_logprobs)) == 50
    assert len(told) == 3


def test_what_breaks_in_the_other_thread_is_raised_here(fake):
    engine = fake.engine(async_scheduling=True)
    fake.model(engine).launch = None
    engine.add(fake.request("r", [1, 2], max_tokens=9))
    with pytest.raises(TypeError):  # a step of nobody fails too
        fake.run(engine)
    assert engine.pool.num_cached == 0


def counted(batch):
    penalties = batch.sampling.penalties[0]
    return penalties.tokens, penalties.counts


def test_missing_tokens_are_filled_in(fake):
    engine = fake.engine()
    scheduler = engine.scheduler
    engine.add(fake.request("a", [1, 2], max_tokens=9, repetition_penalty=1.5))
    engine.add(fake.request("b", [3], max_tokens=9))
    plan = scheduler.schedule()
    scheduler.advance(plan)
    engine.add(fake.request("c", [7, 8, 9], max_tokens=9))
    batch = build_batch(scheduler.schedule())
    assert batch.sources.tolist() == [0, 1, -1, -1, -1]
    filled = with_tokens(batch, np.array([41, -1]))
    assert filled.token_ids.tolist() == [41, 0, 7, 8, 9]
    assert [*map(list, counted(filled))] == [[1, 2, 41], [0, 0, 1]]
    assert [*map(list, counted(batch))] == [[1, 2], [0, 0]]
    assert counted(with_tokens(batch, np.array([2, -1])))[1].tolist() == [0, 1]


@pytest.mark.parametrize("native", [True, False])
def test_a_real_model_says_the_same(tiny_model, native):
    prompts = ["Once upon", "Once upon a time", list(range(40)), [7] * 17]
    params = [
        SamplingParams(temperature=0, max_tokens=20),
        SamplingParams(n=2, temperature=0.9, seed=1, top_p=0.9, max_tokens=24, logprobs=2),
        SamplingParams(temperature=0.8, seed=2, top_k=20, repetition_penalty=1.3, max_tokens=28, stop=["a"]),
        SamplingParams(temperature=1, seed=3, min_tokens=9, max_tokens=30, frequency_penalty=0.5),
    ]

    def run(**settings):
        llm = LLM(str(tiny_model("llama3")), dtype="float32", kv_cache_bytes=2**19, progress=False, **settings)
        for _ in range(2):  # the second time with a warm cache, while a dropped step is still under way
            outputs = llm.generate(prompts, params, use_tqdm=False)
        llm.close()
        return [
            (line.token_ids, line.text, line.finish_reason, line.logprobs and [*map(sorted, line.logprobs)])
            for output in outputs
            for line in output.outputs
        ]

    if native:
        assert run(async_scheduling=True) == run()
    else:
        with library.use(None):
            assert run(async_scheduling=True) == run()
