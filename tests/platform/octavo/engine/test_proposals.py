"""Proposed tokens change how many steps an answer takes, and nothing of the answer."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.cost_model import StepWork
from octavo.engine.batch import build_batch
from octavo.engine.recent import Origin
from octavo.engine.sequence import Sequence
from octavo_kernels.native import library

KINDS = [{}, {"n": 3}, {"logprobs": 2}, {"prompt_logprobs": 1}, {"stop_token_ids": list(range(0, 1000, 15))},
         {"min_tokens": 8, "stop_token_ids": list(range(0, 1000, 15))}, {"n": 2, "logprobs": 0}]  # fmt: skip


class Guesser:
    """Proposes the true continuation, with mistakes.

    Args:
        right: chance that a token is the true one.
        most: tokens proposed at once.
        every: only sequences whose index in their request is even, where it is 2.
    """

    def __init__(self, truth, right: float, most: int, every: int = 1, seed: int = 0) -> None:
        self._truth, self._right, self._most, self._every = truth, right, most, every
        self._rng = random.Random(seed)

    def begin(self, running: list[Sequence], room: int) -> bool:
        return True

    def follows(self, seq: Sequence) -> bool:
        return seq.index % self._every == 0

    def verified(self, seq: Sequence, right: int, proposed: int) -> Origin:
        assert 0 <= right <= proposed
        return "text"

    def took(self, work: StepWork, proposed: int, seconds: float) -> None:
        assert 0 <= proposed < work.tokens
        assert seconds >= 0

    def checked(self, seq, kept: int, proposed: int, seconds: float) -> None:
        assert 0 <= kept <= proposed
        assert seconds >= 0

    def raised(self, sequences) -> None:
        pass

    def ended(self, seq: Sequence) -> None:
        assert seq.ended

    def check_integrity(self) -> None:
        pass

    def close(self) -> None:
        pass

    def propose(self, seq: Sequence, most: int) -> list[int]:
        assert not seq.num_pending
        assert most > 0
        told = self._truth(seq, self._rng.randint(0, self._most))
        return [token if self._rng.random() < self._right else self._rng.randrange(-1, 1001) for token in told]


def of_fake(fake):
    return lambda seq, count: fake.expected(seq.token_ids, count, seq.group.seed_of(seq.index))


def everything(fake, proposer=None, *, requests: int = 2 * len(KINDS), **settings):
    """What clients are told of requests of all kinds, and the engine that ran them."""
    engine = fake.engine(**{"num_blocks": 400, "max_num_seqs": 20, "max_num_batched_tokens": 64, **settings})
    engine.scheduler.proposer = proposer
    shared = list(range(900, 930))
    for i in range(requests):
        prompt = shared[: 9 * (i % 4)] + list(range(1, 8 + i))
        engine.add(fake.request(f"r{i}", prompt, seed=i, max_tokens=10 + i, **KINDS[i % len(KINDS)]))
    told: dict[tuple[str, int], list] = {}
    while engine.has_work:
        updates = engine.step()
        assert len({(update.request_id, update.index) for update in updates}) == len(updates)
        for update in updates:
            told.setdefault((update.request_id, update.index), []).append(update)
        engine.check_integrity()
    assert engine.pool.num_owned == 0
    return {key: said(updates) for key, updates in told.items()}, engine


def said(updates):
    last = updates[-1]
    return (
        [token for update in updates for token in update.token_ids],
        [entry for update in updates for entry in update.logprobs or ()],
        updates[0].prompt_logprobs,
        (last.finish_reason, last.stop_reason, round(last.cumulative_logprob, 9)),
    )


def steps(fake, engine) -> int:
    return len(fake.model(engine).batches)


@pytest.mark.parametrize("ahead", [False, True])
def test_right_proposals_save_steps(fake, ahead):
    engine = fake.engine(async_scheduling=ahead, max_num_batched_tokens=64)
    engine.scheduler.proposer = Guesser(of_fake(fake), 1.0, 3)
    engine.scheduler.proposer._rng.randint = lambda _, most: most
    engine.add(fake.request("r", [1, 2, 3], max_tokens=40))
    assert fake.run(engine)["r"][0] == fake.expected([1, 2, 3], 40)
    assert steps(fake, engine) == 1 + -(-39 // 4)
    assert max(len(batch.sampling.token_index) for batch in fake.model(engine).batches) == 4


def test_wrong_ones_are_given_back(fake):
    engine = fake.engine(max_num_batched_tokens=64)
    engine.scheduler.proposer = Guesser(of_fake(fake), 0.0, 7)
    engine.add(fake.request("r", [1, 2, 3], max_tokens=40))
    (seq,) = engine.scheduler._groups["r"].sequences
    while engine.has_work:
        engine.step()
        if not seq.ended:
            assert seq.num_computed == seq.num_known - 1
            assert len(seq.table.blocks) == -(-seq.num_computed // 4)
    assert seq.token_ids[3:] == fake.expected([1, 2, 3], 40)
    assert steps(fake, engine) == 40


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    right=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    most=st.integers(1, 12),
    every=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**20),
    ahead=st.booleans(),
    num_blocks=st.sampled_from([400, 60]),
    caching=st.booleans(),
    chunk=st.sampled_from([9, 64]),
)
def test_whatever_is_proposed_all_say_the_same(fake, right, most, every, seed, ahead, num_blocks, caching, chunk):
    world = {"num_blocks": num_blocks, "enable_prefix_caching": caching, "max_num_batched_tokens": chunk}
    theirs, _ = everything(fake, **world)
    proposer = Guesser(of_fake(fake), right, most, every, seed)
    ours, engine = everything(fake, proposer, async_scheduling=ahead, **world)
    assert ours == theirs
    assert max(len(batch.sampling.token_index) for batch in fake.model(engine).batches) <= 20


def test_they_never_take_what_others_need(fake):
    plain = fake.engine(num_blocks=60, max_num_seqs=6, max_num_batched_tokens=64)
    guessed = fake.engine(num_blocks=60, max_num_seqs=6, max_num_batched_tokens=64)
    guessed.scheduler.proposer = Guesser(of_fake(fake), 0.0, 30)
    for engine in (plain, guessed):
        for i in range(6):
            engine.add(fake.request(f"r{i}", [i] * 9, max_tokens=30))
        fake.run(engine)
    assert guessed.stats().counters.preemptions == plain.stats().counters.preemptions == 0
    assert steps(fake, guessed) == steps(fake, plain)


def test_what_is_not_certain_is_not_published(fake):
    engine = fake.engine(max_num_batched_tokens=64)
    engine.scheduler.proposer = Guesser(of_fake(fake), 1.0, 9)
    engine.add(fake.request("r", [1, 2, 3], max_tokens=30))
    (seq,) = engine.scheduler._groups["r"].sequences
    while engine.has_work:
        known = len(seq.token_ids)
        plan = engine.scheduler.schedule()
        assert engine.pool.num_owned == 0 or seq.table.num_published <= known // 4
        result = engine.executor.launch(build_batch(plan))()
        engine.scheduler.commit(engine.scheduler.advance(plan), result)
        assert seq.ended or seq.table.num_published == seq.num_computed // 4
    assert engine.pool.num_cached == (3 + 29) // 4


def test_a_failed_row_among_them_ends_the_sequence_there(fake):
    engine = fake.engine(max_num_batched_tokens=64)
    engine.scheduler.proposer = Guesser(of_fake(fake), 1.0, 9)
    truth = fake.expected([1, 2], 9)
    fake.model(engine).fail_tokens.add(truth[5])
    engine.add(fake.request("r", [1, 2], max_tokens=30))
    told = []
    while engine.has_work:
        told += engine.step()
    assert [token for update in told for token in update.token_ids] == truth[:6]
    assert told[-1].finish_reason == "error"
    assert engine.pool.num_owned == 0


def test_an_abort_while_they_are_verified_leaves_nothing(fake):
    engine = fake.engine(max_num_batched_tokens=64, async_scheduling=True)
    engine.scheduler.proposer = Guesser(of_fake(fake), 1.0, 9)
    engine.add(fake.request("r", [1, 2], max_tokens=60))
    for _ in range(6):
        engine.step()
    engine.abort("r")
    assert fake.run(engine) == {}
    assert engine.pool.num_owned == 0


def test_penalties_of_a_row_count_what_is_proposed_before_it(fake):
    engine = fake.engine(max_num_batched_tokens=64)
    engine.add(fake.request("r", [7, 8], max_tokens=9, repetition_penalty=2.0, min_tokens=3, stop_token_ids=[5]))
    engine.step()
    (seq,) = engine.scheduler._groups["r"].sequences
    first = seq.token_ids[-1]

    class Fixed(Guesser):
        def propose(self, seq, most):
            return [7, 41, 41]

    engine.scheduler.proposer = Fixed(of_fake(fake), 1.0, 3)
    plan = engine.scheduler.schedule()
    rows = build_batch(plan).sampling
    counted = [dict(zip(p.tokens.tolist(), p.counts.tolist(), strict=True)) for p in rows.penalties.values()]
    assert counted == [
        {7: 0, 8: 0, first: 1},
        {7: 1, 8: 0, first: 1},
        {7: 1, 8: 0, first: 1, 41: 1},
        {7: 1, 8: 0, first: 1, 41: 2},
    ]
    assert rows.position.tolist() == [3, 4, 5, 6]
    assert rows.token_index.tolist() == [0, 1, 2, 3]
    assert list(rows.banned) == [0, 1]
    assert seq.counts.now()[1].tolist() == [0, 0, 1]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("prompts", [1, 5])
def test_nobody_is_blamed_for_what_was_guessed(fake, ahead, prompts):
    """A guess that makes every step raise costs its sequences their guesses; a poisonous request is still found."""
    engine = fake.engine(max_num_batched_tokens=64, async_scheduling=ahead)
    proposer = engine.scheduler.proposer = Guesser(of_fake(fake), 1.0, 3)
    truths = {f"r{i}": fake.expected([i, 5], 60) for i in range(prompts)}
    wrong = max(set(range(1000)) - {token for truth in truths.values() for token in truth})
    shut = set()
    proposer.propose = lambda seq, most: [wrong]
    proposer.follows = lambda seq: seq not in shut
    proposer.raised = shut.update
    launch = fake.model(engine).launch

    def raising(batch):
        if wrong in batch.token_ids:
            raise RuntimeError("a step fails")
        return launch(batch)

    fake.model(engine).launch = raising
    for i in range(prompts):
        engine.add(fake.request(f"r{i}", [i, 5], max_tokens=60))
    engine.add(fake.request("poison", [wrong, 5], max_tokens=60))
    ends, said = {}, {}
    while engine.has_work:
        for update in engine.step():
            said.setdefault(update.request_id, []).extend(update.token_ids)
            ends[update.request_id] = update.finish_reason
    assert ends == {"poison": "error"} | dict.fromkeys(truths, "length")
    assert {name: tokens for name, tokens in said.items() if name != "poison"} == truths
    assert 0 < len(shut) <= prompts


PROMPTS = ["Once upon", "Once upon a time", list(range(40)), [7] * 17]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=24),
    SamplingParams(n=2, temperature=0.9, seed=1, top_p=0.9, max_tokens=24, logprobs=2),
    SamplingParams(temperature=0.8, seed=2, top_k=20, repetition_penalty=1.3, max_tokens=28, stop=["a"]),
    SamplingParams(temperature=1, seed=3, min_tokens=9, max_tokens=30, frequency_penalty=0.5, presence_penalty=0.3),
]


@pytest.mark.parametrize(("native", "ahead"), [(True, False), (True, True), (False, False)])
def test_a_real_model_says_the_same(tiny_model, native, ahead):
    settings = {"dtype": "float32", "kv_cache_bytes": 2**19, "progress": False, "async_scheduling": ahead}
    with library.use(library.library() if native else None):
        llm = LLM(str(tiny_model("llama3")), **settings)
        plain = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
        texts = {
            (output.request_id, line.index): output.prompt_token_ids + line.token_ids
            for output in plain
            for line in output.outputs
        }
        before = llm.engine._steps

        def truth(seq: Sequence, count: int) -> list[int]:
            number = int(seq.group.request.request_id) % len(PROMPTS)
            return texts[str(number), seq.index][seq.num_known : seq.num_known + count]

        for right in (0.0, 0.7, 1.0):
            llm.engine.scheduler.proposer = Guesser(truth, right, 5)
            begun = llm.engine._steps
            guessed = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
            taken = llm.engine._steps - begun
            for ours, theirs in zip(guessed, plain, strict=True):
                for a, b in zip(ours.outputs, theirs.outputs, strict=True):
                    assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
                    assert logprobs(a) == pytest.approx(logprobs(b), abs=1e-5)
        assert taken < before * 0.7
        llm.close()


def logprobs(line) -> np.ndarray:
    entries = (entry for tokens in line.logprobs or () for entry in tokens.values())
    return np.array([entry.logprob for entry in entries])
