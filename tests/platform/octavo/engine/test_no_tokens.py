"""Requests that sample nothing: the prompt is computed, or found in the cache, and that is all."""

from __future__ import annotations

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.errors import BadRequest, PromptTooLong
from octavo.request import Request, SequenceUpdate
from octavo_kernels.native import library

AHEAD = pytest.mark.parametrize("ahead", [False, True])


def updates(engine) -> list[SequenceUpdate]:
    """Step until idle; all that is said."""
    said = []
    while engine.has_work:
        said += engine.step()
        engine.check_integrity()
    assert engine.pool.num_owned == 0
    return said


def sampled(fake, engine) -> int:
    return sum(len(batch.sampling.token_index) for batch in fake.model(engine).batches)


@AHEAD
@pytest.mark.parametrize("length", [1, 3, 4, 40, 41])
def test_the_prompt_is_computed_and_nothing_sampled(fake, ahead, length):
    engine = fake.engine(async_scheduling=ahead)
    engine.add(fake.request("r", list(range(length)), max_tokens=0))
    (update,) = updates(engine)
    assert (update.token_ids, update.finish_reason, update.logprobs) == ([], "length", None)
    assert sum(batch.num_tokens for batch in fake.model(engine).batches) == length
    assert sampled(fake, engine) == engine.generation_tokens == 0
    assert engine.pool.num_cached == length // 4  # as warm for the next one as if it had answered


@AHEAD
def test_what_the_cache_holds_whole_is_not_computed_at_all(fake, ahead):
    engine = fake.engine(async_scheduling=ahead)
    prompt = list(range(40))
    for name in ("cold", "warm"):
        fake.model(engine).batches.clear()
        engine.add(fake.request(name, prompt, max_tokens=0))
        (update,) = updates(engine)
    assert fake.model(engine).batches == []
    assert (update.request_id, update.num_cached_tokens, update.finish_reason) == ("warm", 40, "length")
    engine.add(fake.request("rest", [*prompt, 1, 2], max_tokens=0))
    assert updates(engine)[0].num_cached_tokens == 40
    assert fake.model(engine).batches[0].num_tokens == 2


@AHEAD
def test_one_that_comes_with_others_of_its_prefix_waits_for_nothing(fake, ahead):
    engine = fake.engine(async_scheduling=ahead, max_num_batched_tokens=200)
    prompt = list(range(40))
    for name, count in (("a", 0), ("b", 0), ("c", 3), ("d", 0)):
        engine.add(fake.request(name, prompt, max_tokens=count))
    said = updates(engine)
    assert sum(batch.num_tokens for batch in fake.model(engine).batches) == 40 + 4 + 2
    assert [token for update in said if update.request_id == "c" for token in update.token_ids] == fake.expected(
        prompt, 3
    )
    assert {update.request_id for update in said if update.finish_reason == "length"} == set("abcd")


@AHEAD
@pytest.mark.parametrize(("n", "best_of"), [(3, None), (2, 5), (20, None)])  # 20: more than there are places
def test_all_of_n_end_at_once(fake, ahead, n, best_of):
    engine = fake.engine(async_scheduling=ahead)
    engine.add(fake.request("r", list(range(50)), max_tokens=0, n=n, best_of=best_of, prompt_logprobs=1))
    said = updates(engine)
    assert [update.index for update in said] == list(range(best_of or n))
    assert all(update.finish_reason == "length" and not update.token_ids for update in said)
    assert len(said[0].prompt_logprobs or []) == 50
    assert not any(update.prompt_logprobs for update in said[1:])
    counters = engine.stats().counters
    assert counters.arrived == counters.finished == (best_of or n)


@AHEAD
@pytest.mark.parametrize("budget", [1, 7, 500])
def test_prompt_logprobs_are_those_of_a_request_that_samples(fake, ahead, budget):
    said = []
    for count in (0, 2):
        engine = fake.engine(async_scheduling=ahead, max_num_batched_tokens=budget)
        for name in ("cold", "warm"):
            engine.add(fake.request(name, list(range(30)), max_tokens=count, prompt_logprobs=1))
            said.append(next(update.prompt_logprobs for update in updates(engine)))
    assert said[0] == said[1] == said[2] == said[3]
    assert len(said[0]) == 30


@AHEAD
def test_preempted_it_starts_again_and_says_all(fake, ahead):
    engine = fake.engine(num_blocks=24, async_scheduling=ahead, max_num_batched_tokens=7, max_model_len=90)
    for i in range(3):
        engine.add(fake.request(f"stream{i}", [i] * 3, max_tokens=60, priority=-1))
    for i in range(3):
        engine.add(fake.request(f"r{i}", [*range(i, i + 60)], max_tokens=0, prompt_logprobs=0, priority=i))
    said = updates(engine)
    assert engine.stats().counters.preemptions > 0
    found = {update.request_id: update.prompt_logprobs for update in said if update.prompt_logprobs}
    assert {name: [next(iter(entry)) for entry in list(entries)[1:]] for name, entries in found.items()} == {
        f"r{i}": [*range(i + 1, i + 60)] for i in range(3)
    }


@AHEAD
def test_it_goes_on_where_another_shard_left_it(fake, ahead):
    engine = fake.engine(async_scheduling=ahead)
    params = SamplingParams(n=3, max_tokens=0, prompt_logprobs=1)
    moved = Request(request_id="r", prompt_token_ids=[*range(30)], params=params, emitted=[None, [], []])
    engine.add(moved)
    said = updates(engine)
    assert sorted(update.index for update in said) == [1, 2]
    assert all(update.finish_reason == "length" and not update.prompt_logprobs for update in said)
    with pytest.raises(BadRequest, match="emitted"):
        engine.add(Request(request_id="r", prompt_token_ids=[1], params=params, emitted=[[], [], [5]]))


@AHEAD
def test_aborted_it_leaves_nothing(fake, ahead):
    engine = fake.engine(async_scheduling=ahead, max_num_batched_tokens=8)
    engine.add(fake.request("r", list(range(30)), max_tokens=0, n=2))
    engine.step()
    assert [update.finish_reason for update in engine.abort("r")] == ["abort"]
    assert updates(engine) == []


def test_its_prompt_may_fill_the_context(fake):
    engine = fake.engine(max_model_len=40)
    engine.add(fake.request("r", list(range(40)), max_tokens=0))
    assert updates(engine)[0].finish_reason == "length"
    with pytest.raises(PromptTooLong, match="41 tokens"):
        engine.add(fake.request("r", list(range(41)), max_tokens=0))
    with pytest.raises(PromptTooLong, match="at least one must be left"):
        engine.add(fake.request("r", list(range(40)), max_tokens=1))


@pytest.mark.parametrize(
    ("native", "settings"),
    [(True, {}), (False, {}), (True, {"async_scheduling": True}), (True, {"tensor_parallel_size": 2})],
)
def test_a_real_models_prompt_logprobs(tiny_model, native, settings):
    prompts = [list(range(40)), [7] * 17, list(range(40)), [9]]
    with library.use(library.library() if native else None):
        llm = LLM(str(tiny_model("llama3")), dtype="float32", kv_cache_bytes=2**19, progress=False, **settings)
        nothing = SamplingParams(max_tokens=0, prompt_logprobs=1)
        ours = llm.generate(prompts, nothing, use_tqdm=False)
        theirs = llm.generate(prompts, SamplingParams(max_tokens=3, prompt_logprobs=1), use_tqdm=False)
        again = llm.generate(prompts, SamplingParams(max_tokens=0, n=2), use_tqdm=False)
        llm.close()
    for output, other in zip(ours, theirs, strict=True):
        assert [(line.token_ids, line.text, line.finish_reason) for line in output.outputs] == [([], "", "length")]
        assert values(output.prompt_logprobs) == pytest.approx(values(other.prompt_logprobs), abs=1e-5)
    assert [len(output.outputs) for output in again] == [2] * 4
    assert again[0].num_cached_tokens == 32


def values(prompt_logprobs) -> np.ndarray:
    return np.array([entry.logprob for tokens in prompt_logprobs[1:] for entry in tokens.values()])
