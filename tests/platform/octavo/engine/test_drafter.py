"""What a draft model keeps of sequences, and how it is loaded."""

from __future__ import annotations

import json
import shutil

import pytest

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.cost_model import CostModel, StepWork
from octavo.engine.drafter import load_drafter
from octavo.engine.drafting import Drafting
from octavo.engine.speculation import Speculation
from octavo.errors import ConfigError
from octavo.execution.load import load_draft
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer


def sequences(fake, **params) -> tuple:
    """An engine, and the sequences of a request that have drawn a token each."""
    engine = fake.engine(num_blocks=400)
    engine.add(fake.request("r", list(range(22)), max_tokens=60, **params))
    engine.step()
    return engine, engine.scheduler.sequences("r")


def test_guesses_are_what_the_model_would_say_and_wrong_ones_are_given_back(fake):
    _, (seq,) = sequences(fake)
    truth, drafter = fake.expected(list(range(22)), 60), fake.drafter()
    assert drafter.lag(seq) == 23
    drafter.catch_up({seq: 10})
    drafter.catch_up({seq: 30})  # all but the newest
    assert drafter.lag(seq) == 1
    assert drafter.draft({seq: 5}) == {seq: truth[1:6]}
    assert drafter.draft({seq: 5}) == {seq: truth[1:6]}  # the step was not run
    seq.token_ids += [*truth[1:4], 7]  # after three right ones
    assert drafter.lag(seq) == 1
    assert drafter.draft({seq: 2}) == {seq: fake.expected(seq.token_ids, 2)}
    seq.token_ids += [1, 2, 3]  # steps without a draft
    assert drafter.lag(seq) == 3
    assert drafter.draft({seq: 1}) == {seq: fake.expected(seq.token_ids, 1)}
    drafter.check_integrity()
    drafter.ended(seq)
    drafter.ended(seq)
    assert drafter.pool.num_owned == 0


@pytest.mark.parametrize("caching", [True, False])
def test_what_sequences_begin_with_is_computed_once(fake, caching):
    engine, found = sequences(fake, n=3)
    drafter = fake.drafter(caching=caching)
    said = drafter.draft({found[0]: 3})
    assert [drafter.lag(seq) for seq in found[1:]] == [23 - (20 if caching else 0)] * 2
    said |= drafter.draft(dict.fromkeys(found[1:], 3))
    assert said == {seq: fake.expected(seq.token_ids, 3, seq.group.seed_of(seq.index)) for seq in found}
    drafter.check_integrity()
    drafter.forget()
    assert drafter.pool.num_owned == 0
    assert engine.scheduler.has_work


def test_what_does_not_fit_is_not_drafted(fake):
    _, (seq,) = sequences(fake)
    assert fake.drafter(num_blocks=5).draft({seq: 1}) == {}
    drafter = fake.drafter()
    drafter.most_tokens = 24
    assert len(drafter.draft({seq: 2})[seq]) == 2
    assert drafter.draft({seq: 3}) == {}
    other = fake.drafter()
    other.executor.spec.vocab_size = 9  # the prompt has larger tokens
    assert other.draft({seq: 1}) == {}


def test_a_token_that_cannot_be_drawn_ends_a_draft(fake):
    _, (seq,) = sequences(fake)
    truth, drafter = fake.expected(list(range(22)), 9), fake.drafter()
    drafter.executor.fail_tokens = {truth[3]}
    assert drafter.draft({seq: 8}) == {seq: truth[1:4]}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("small", ["llama3", "qwen2"])
def test_a_real_model_says_the_same(tiny_model, ahead, small):
    """Whether the draft model always agrees, being the same, or never."""
    shared = {"dtype": "float32", "kv_cache_bytes": 2**20, "progress": False}
    plain = LLM(str(tiny_model("llama3")), speculation=False, **shared)
    draft = {"draft": str(tiny_model(small))}
    guessing = LLM(str(tiny_model("llama3")), speculation=draft, async_scheduling=ahead, **shared)
    ours, theirs = guessing.engine.pool, guessing.engine.scheduler.proposer._drafting._drafter.pool
    assert ours.num_blocks == theirs.num_blocks > 30
    drafter = free_of_cost(guessing, 1 + ahead)
    params = [SamplingParams(temperature=1.0, seed=3, n=2, max_tokens=40, logprobs=0),
              SamplingParams(temperature=0, max_tokens=40, presence_penalty=0.5)]  # fmt: skip
    prompts = [list(range(30)), [5, 9, 200]]
    want = [line.token_ids for output in plain.generate(prompts, params, use_tqdm=False) for line in output.outputs]
    said = [line.token_ids for output in guessing.generate(prompts, params, use_tqdm=False) for line in output.outputs]
    assert said == want
    proposed, right = guessing.engine.stats().counters.by_origin["draft"]
    assert (right > 0.6 * proposed > 20) if small == "llama3" else right < proposed / 2
    guessing.engine.check_integrity()
    assert drafter.pool.num_owned == 0
    plain.close()
    guessing.close()


def free_of_cost(llm: LLM, in_flight: int):
    """Have drafts pay on any machine."""
    cost = CostModel()
    for rows in range(1, 10):
        cost.observe(StepWork(rows, rows, 0, 0, has_prompts=False), 1.0)
    drafter = llm.engine.scheduler.proposer._drafting._drafter
    drafter.seconds = lambda lags, contexts: 1e-3
    llm.engine.scheduler.proposer = Speculation(cost, 64, in_flight, Drafting(drafter, in_flight))
    return drafter


def test_what_cannot_draft_is_a_sentence(tiny_model, tiny_encoder, tmp_path):
    folder = tiny_model("llama3")
    source, tokenizer = resolve_source(str(folder)), load_tokenizer(resolve_source(str(folder)))

    def load(draft) -> None:
        load_drafter(source, EngineConfig(speculation={"draft": str(draft)}), tokenizer)

    other = shutil.copytree(folder, tmp_path / "other")
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["!"], words['"'] = words['"'], words["!"]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ConfigError, match="has another tokenizer than"):
        load(other)
    encoder = resolve_source(str(tiny_encoder("bert")))
    for pair in ((source, encoder), (encoder, source)):
        with pytest.raises(ConfigError, match=r"is for models that generate text, and '.*bert.*' generates none"):
            load_draft(*pair, EngineConfig())
    for wrong in ({}, {"draft": ""}, {"drafts": "a"}):
        with pytest.raises(ConfigError, match="speculation"):
            EngineConfig(speculation=wrong)
