"""Requests that want a vector: the same bits however they are scheduled, whole texts for encoders, one end for each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import BadRequest, ConfigError, PromptTooLong
from octavo.pooling import Pooling, PoolingInfo
from octavo.request import Request, SamplingParams, SequenceUpdate

AHEAD = pytest.mark.parametrize("ahead", [False, True])
METHODS = pytest.mark.parametrize("method", ["last", "mean", "cls"])
DRAWN = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def request(name: str, prompt: list[int], **fields) -> Request:
    return Request(request_id=name, prompt_token_ids=prompt, pooling=Pooling("embed"), **fields)


def run(engine, said: list[SequenceUpdate] | None = None) -> dict[str, SequenceUpdate]:
    """Step until idle; the last update of each request, also of those already said."""
    said = [] if said is None else said
    while engine.has_work:
        said += engine.step()
        engine.check_integrity()
    assert engine.pool.num_owned == 0
    ended = [update for update in said if update.finish_reason is not None]
    assert len({update.request_id for update in ended}) == len(ended)
    return {update.request_id: update for update in ended}


def expected(fake, method: str, prompt: list[int]) -> bytes:
    states = [fake.state(prompt[: i + 1]) for i in range(len(prompt))]
    if method == "mean":
        total = np.rint(np.array(states, np.float64) * 2**32).sum(0)
        return (total / (2**32 * len(prompt))).astype(np.float32).tobytes()
    return states[0 if method == "cls" else -1].tobytes()


def fail_at(model, steps: set[int]) -> None:
    """Have some launches raise, counted from 0."""
    launch, count = model.launch, itertools.count()

    def maybe(batch):
        if next(count) in steps:
            raise RuntimeError("a step")
        return launch(batch)

    model.launch = maybe


@AHEAD
@METHODS
@DRAWN
@given(data=st.data())
def test_a_vector_has_the_same_bits_in_any_company(fake, ahead, method, data):
    engine = fake.engine(
        data.draw(st.sampled_from([12, 40])),  # blocks: few enough to preempt
        pooling=PoolingInfo(method=method, dimensions=5),
        max_num_batched_tokens=data.draw(st.sampled_from([4, 7, 32])),
        max_model_len=48,
        async_scheduling=ahead,
    )
    fail_at(fake.model(engine), data.draw(st.sets(st.integers(0, 12), max_size=1)))
    texts = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=8))
    prompts = {f"v{i}": ([*range(9)] if i % 2 else []) + text for i, text in enumerate(texts)}
    said: list[SequenceUpdate] = []
    for i, (name, prompt) in enumerate(prompts.items()):
        engine.add(request(name, prompt))
        if i % 3 == 0:
            engine.add(fake.request(f"g{i}", prompt, max_tokens=data.draw(st.integers(1, 12))))
        if data.draw(st.booleans()):
            said += engine.step()
    ended = run(engine, said)
    for name, prompt in prompts.items():
        assert ended[name].finish_reason == "stop"
        assert ended[name].token_ids == []
        assert ended[name].pooled == expected(fake, method, prompt)
    assert len(ended) == len(prompts) + len(range(0, len(prompts), 3))


@AHEAD
def test_what_the_cache_holds_whole_computes_its_last_token(fake, ahead):
    engine = fake.engine(pooling=PoolingInfo(dimensions=5), async_scheduling=ahead)
    prompt = list(range(24))
    for name, cached, computed in (("cold", 0, 24), ("warm", 20, 4)):
        fake.model(engine).batches.clear()
        engine.add(request(name, prompt))
        (update,) = run(engine).values()
        assert (update.num_cached_tokens, update.pooled) == (cached, expected(fake, "last", prompt))
        assert sum(batch.num_tokens for batch in fake.model(engine).batches) == computed


@pytest.mark.parametrize("method", ["mean", "cls"])
def test_what_needs_all_states_reads_nothing_of_the_cache(fake, method):
    engine = fake.engine(pooling=PoolingInfo(method=method, dimensions=5))
    for name in ("cold", "warm"):
        engine.add(request(name, [*range(24)]))
        (update,) = run(engine).values()
        assert (update.num_cached_tokens, update.pooled) == (0, expected(fake, method, [*range(24)]))


@AHEAD
@METHODS
def test_what_is_not_finite_ends_its_own_request_alone(fake, ahead, method):
    engine = fake.engine(pooling=PoolingInfo(method=method, dimensions=5), async_scheduling=ahead)
    fake.model(engine).fail_tokens = {666}
    for name, prompt in (("good", [1, 2, 3]), ("bad", [666]), ("other", [4] * 50)):
        engine.add(request(name, prompt))
    ended = run(engine)
    assert {name: update.finish_reason for name, update in ended.items()} == {
        "good": "stop", "bad": "error", "other": "stop"
    }  # fmt: skip
    assert ended["bad"].pooled is None
    assert "not finite" in ended["bad"].stop_reason


def test_a_broken_state_in_an_early_chunk_is_not_forgotten(fake):
    engine = fake.engine(pooling=PoolingInfo(method="mean", dimensions=5), max_num_batched_tokens=4)
    fake.model(engine).fail_tokens = {666}
    engine.add(request("r", [1, 666, *range(30)]))
    assert run(engine)["r"].finish_reason == "error"


@AHEAD
def test_one_whose_steps_raise_ends_alone(fake, ahead):
    engine = fake.engine(pooling=PoolingInfo(dimensions=5), async_scheduling=ahead)
    launch = fake.model(engine).launch

    def poisoned(batch):
        if 666 in batch.token_ids:
            raise RuntimeError("poison")
        return launch(batch)

    fake.model(engine).launch = poisoned
    prompts = {f"r{i}": [i, 666] if i == 3 else [i] * 9 for i in range(8)}
    for name, prompt in prompts.items():
        engine.add(request(name, prompt, alone=name == "r5"))
    ended = run(engine)
    assert {name for name, update in ended.items() if update.finish_reason == "error"} == {"r3"}
    assert all(ended[name].pooled == expected(fake, "last", prompts[name]) for name in prompts if name != "r3")


def test_one_that_moves_from_another_shard_runs_again(fake):
    engine = fake.engine(pooling=PoolingInfo(dimensions=5))
    engine.add(request("r", [1, 2, 3], emitted=[[]]))
    assert run(engine)["r"].pooled == expected(fake, "last", [1, 2, 3])


def test_aborted_ones_leave_nothing(fake):
    engine = fake.engine(pooling=PoolingInfo(method="mean", dimensions=5), max_num_batched_tokens=4)
    engine.add(request("r", [1] * 20))
    engine.step()
    (update,) = engine.abort("r")
    assert (update.finish_reason, update.pooled) == ("abort", None)
    assert not engine.has_work
    engine.check_integrity()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"params": SamplingParams(n=2)}, "n is 2"),
        ({"params": SamplingParams(prompt_logprobs=1)}, "without tokens"),
        ({"pooling": Pooling("embed", 4)}, "inside of the prompt"),
        (
            {"pooling": Pooling("classify")},
            r"fake cannot score and classify .* can generate text .* or make embeddings",
        ),
    ],
)
def test_what_cannot_be_is_refused(fake, fields, sentence):
    engine = fake.engine(pooling=PoolingInfo(dimensions=5))
    with pytest.raises(BadRequest, match=sentence):
        engine.add(Request(request_id="r", prompt_token_ids=[1, 2, 3], **({"pooling": Pooling("embed")} | fields)))


def test_a_model_without_vectors_says_so(fake):
    with pytest.raises(BadRequest, match="fake cannot make embeddings: it can generate text"):
        fake.engine().add(request("r", [1]))


# ---- encoders -----------------------------------------------------------------------------------------------------


@AHEAD
@DRAWN
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=40), every=st.integers(1, 9))
def test_an_encoders_texts_are_whole_in_order_and_within_the_budget(fake, ahead, lengths, every):
    engine = fake.encoder(async_scheduling=ahead)
    prompts = {f"r{i}": [(i + j) % 7 for j in range(length)] for i, length in enumerate(lengths)}
    said: list[SequenceUpdate] = []
    for i, (name, prompt) in enumerate(prompts.items()):
        engine.add(request(name, prompt))
        if i % every == 0:
            said += engine.step()
    ended = run(engine, said)
    assert list(ended) == list(prompts)  # nobody overtakes
    assert all(ended[name].pooled == fake.state(prompt).tobytes() for name, prompt in prompts.items())
    batches = fake.model(engine).batches if ahead else engine.executor.batches
    assert all(batch.num_tokens <= 32 or batch.num_seqs == 1 for batch in batches)
    if every > len(lengths):  # all waited from the second step on: no step that could have held the next text too
        sizes = [batch.num_tokens for batch in batches[1:]]
        firsts = [int(batch.context_lens[0]) for batch in batches[2:]]
        assert all(size + following > 32 for size, following in zip(sizes, firsts, strict=False))


def test_an_encoder_takes_many_short_texts_in_a_step_and_keeps_nothing(fake):
    engine = fake.encoder(max_num_seqs=2)
    for i in range(32):
        engine.add(request(str(i), [i]))
    assert len(engine.step()) == 32
    assert (engine.pool.num_cached, engine.stats().state.num_sequences) == (0, 0)


def test_an_encoder_learns_what_its_texts_cost(fake):
    engine = fake.encoder()
    for i in range(20):
        engine.add(request(str(i), [1] * 30))
    run(engine)
    engine.add(request("last", [1] * 30))
    state = engine.stats().state
    assert 0.5e-3 < state.backlog_seconds < 2e-3  # the fake's steps take a millisecond
    assert state.start_seconds(30) == pytest.approx(state.queue_seconds)  # nobody holds a place to generate


def test_an_encoder_refuses_what_it_is_not_for(fake):
    engine = fake.encoder(max_tokens=50)
    with pytest.raises(BadRequest, match="fake cannot generate text: it can make embeddings"):
        engine.add(fake.request("r", [1]))
    with pytest.raises(PromptTooLong, match="50 tokens"):
        engine.add(request("r", [1] * 51))
    limits = fake.encoder(max_tokens=50, max_model_len=80).limits
    assert (limits.max_model_len, limits.pooling.max_tokens) == (80, 80)
    with pytest.raises(ConfigError, match="holds 100 tokens"):
        fake.encoder(max_model_len=101)
