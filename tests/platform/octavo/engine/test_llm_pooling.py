from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from octavo import LLM, PoolingParams, SamplingParams
from octavo.engine.llm_pooling import pairs
from octavo.errors import BadRequest, OctavoError, PromptTooLong
from octavo.pooling import PoolingInfo


@pytest.fixture(scope="module")
def llm(tiny_model):
    llm = LLM(str(tiny_model("llama3")), dtype="float32", kv_cache_bytes=2**24, max_model_len=64, progress=False)
    yield llm
    llm.close()


def lengths(outputs) -> list[float]:
    return [float(np.linalg.norm(output.outputs.embedding)) for output in outputs]


def test_texts_and_token_ids_become_vectors_in_order(llm):
    outputs = llm.embed(["one", [3, 4, 5], {"prompt_token_ids": [6]}], use_tqdm=False)
    assert [len(output.prompt_token_ids) for output in outputs] == [3, 3, 1]
    assert [output.outputs.hidden_size for output in outputs] == [64] * 3
    assert lengths(outputs) == pytest.approx([1] * 3)
    assert all(output.finished for output in outputs)
    alone = llm.embed([3, 4, 5], use_tqdm=False)[0]
    assert alone.outputs.embedding == outputs[1].outputs.embedding
    assert llm.embed([], use_tqdm=False) == []


def test_generation_goes_on_beside(llm):
    before = llm.generate("hello", SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)[0]
    llm.embed("hello", use_tqdm=False)
    after = llm.generate("hello", SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)[0]
    assert before.outputs[0].token_ids == after.outputs[0].token_ids


def test_parameters_are_one_for_all_or_one_each(llm):
    cut, whole = PoolingParams(dimensions=8), PoolingParams(use_activation=False)
    outputs = llm.embed(["one", "one"], pooling_params=[cut, whole], use_tqdm=False)
    assert [output.outputs.hidden_size for output in outputs] == [8, 64]
    assert lengths(outputs)[0] == pytest.approx(1)
    raw = np.array(outputs[1].outputs.embedding)
    assert np.allclose(outputs[0].outputs.embedding, raw[:8] / np.linalg.norm(raw[:8]), atol=1e-6)
    (encoded,) = llm.encode("one", whole, use_tqdm=False)
    assert encoded.outputs.data.tolist() == outputs[1].outputs.embedding
    with pytest.raises(BadRequest, match="pooling_params has 1 entries for 2"):
        llm.embed(["one", "two"], pooling_params=[cut], use_tqdm=False)


def test_long_texts_are_cut_where_asked_and_refused_otherwise(llm):
    text = "x" * 100
    with pytest.raises(PromptTooLong, match="64 tokens"):
        llm.embed(["fine", text], use_tqdm=False)
    cut = [PoolingParams(truncate_prompt_tokens=most) for most in (-1, 7)]
    outputs = llm.embed([text, text], pooling_params=cut, use_tqdm=False)
    assert [len(output.prompt_token_ids) for output in outputs] == [64, 7]
    for wrong in (0, 65, True):
        with pytest.raises(BadRequest, match="1 to 64"):
            llm.embed(text, pooling_params=PoolingParams(truncate_prompt_tokens=wrong), use_tqdm=False)


def test_prompts_go_by_name(llm, monkeypatch):
    info = PoolingInfo(dimensions=64, prompts={"query": "Q: "}, default_prompt=None)
    monkeypatch.setattr(llm.engine, "limits", dataclasses.replace(llm.engine.limits, pooling=info))
    named = llm.embed("one", prompt_name="query", use_tqdm=False)[0]
    assert named.prompt_token_ids == llm.tokenizer.encode("Q: one")
    (given,) = llm.embed([[5, 6]], prompt_name="query", use_tqdm=False)
    assert given.prompt_token_ids == [5, 6]
    with pytest.raises(BadRequest, match="no prompt 'passage'"):
        llm.embed("one", prompt_name="passage", use_tqdm=False)


def test_scores_without_a_head_are_cosines(llm):
    scores = [output.outputs.score for output in llm.score("one", ["one", "two", "one"], use_tqdm=False)]
    one, two = (np.array(output.outputs.embedding) for output in llm.embed(["one", "two"], use_tqdm=False))
    assert scores == pytest.approx([1, one @ two, 1], abs=1e-6)


def test_a_model_without_a_head_does_not_classify(llm):
    with pytest.raises(BadRequest, match="cannot score and classify"):
        llm.classify("one", use_tqdm=False)
    with pytest.raises(BadRequest, match="cannot do 'token_embed': it can "):
        llm.encode("one", pooling_task="token_embed", use_tqdm=False)


@pytest.mark.parametrize("prompts", [5, None, np.array([1, 2]), iter(["one"])])
def test_what_holds_no_prompts_is_named(llm, prompts):
    with pytest.raises(BadRequest, match="prompts must be a text, token ids or a list"):
        llm.embed(prompts, use_tqdm=False)


def test_pairs_are_one_with_many_or_one_by_one():
    assert pairs("a", ["b", "c"]) == [("a", "b"), ("a", "c")]
    assert pairs(["a", "b"], ["c", "d"]) == [("a", "c"), ("b", "d")]
    assert pairs("a", "b") == [("a", "b")]
    with pytest.raises(BadRequest, match="data_1 has 2 texts and data_2 has 3"):
        pairs(["a", "b"], ["c", "d", "e"])


def test_a_text_on_which_the_model_fails_is_named(llm, monkeypatch):
    launch = llm.engine.executor.launch

    def broken(batch):
        result = launch(batch)()
        result.pooled = {row: values * np.nan for row, values in result.pooled.items()}
        return lambda: result

    monkeypatch.setattr(llm.engine.executor, "launch", broken)
    with pytest.raises(OctavoError, match=r"request \d+: the model produced values that are not finite"):
        llm.embed("one", use_tqdm=False)
