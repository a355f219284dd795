"""Vectors of decoders: as transformers' states say, and the same bits alone, in any company, and on every executor."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo import LLM, PoolingParams, SamplingParams
from octavo.engine.engine import Engine
from octavo.errors import BadRequest
from octavo.execution.pooling import pool, pooled_tokens
from octavo.pooling import Pooling, PoolingInfo
from octavo.request import Request
from octavo.step import PooledRow, SamplingRows, StepBatch
from octavo_kernels.native.library import library, use

NONE = np.zeros(0)
PROMPTS = [[5], [5, 9, 200], list(range(30)), [7] * 17, list(range(100, 140)), [*range(30), 3]]
NATIVE = pytest.mark.parametrize("native", [pytest.param(True, id="native"), pytest.param(False, id="torch")])


def engine_of(folder, method: str, *, native: bool, **settings) -> Engine:
    """An engine that pools by a method, whatever the checkpoint says."""
    if native and library() is None:
        pytest.skip("no C++ compiler")
    options = {"dtype": "float32", "kv_cache_bytes": 2**23, "max_num_batched_tokens": 16, **settings}
    with use(library() if native else None):
        engine = LLM(str(folder), progress=False, **options).engine
    assert ("exact" in str(engine.executor)) == (native and options["dtype"] == "float32")
    return Engine("m", engine.executor, engine.config, [], pooling=PoolingInfo(method=method, dimensions=64))


def vectors(engine: Engine, prompts, beside=()) -> list[bytes]:
    """Those of prompts; others generate meanwhile."""
    params = SamplingParams(temperature=0.0, max_tokens=9)
    for i, prompt in enumerate(beside):
        engine.add(Request(request_id=f"g{i}", prompt_token_ids=prompt, params=params))
    for i, prompt in enumerate(prompts):
        engine.add(Request(request_id=str(i), prompt_token_ids=prompt, pooling=Pooling("embed")))
    found = {}
    while engine.has_work:
        found |= {update.request_id: update.pooled for update in engine.step() if update.pooled is not None}
    engine.check_integrity()
    return [found[str(i)] for i in range(len(prompts))]


@NATIVE
@pytest.mark.parametrize("method", ["last", "mean"])
@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3"])
def test_states_are_those_of_transformers(tiny_model, name, method, native):
    from transformers import AutoModel

    engine = engine_of(tiny_model(name), method, native=native)
    model = AutoModel.from_pretrained(tiny_model(name), dtype=torch.float32, attn_implementation="eager").eval()
    for prompt, pooled in zip(PROMPTS, vectors(engine, PROMPTS, PROMPTS[2:4]), strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([prompt])).last_hidden_state[0]
        wanted = states[-1] if method == "last" else states.mean(0)
        torch.testing.assert_close(torch.from_numpy(np.frombuffer(pooled, "<f4").copy()), wanted, atol=1e-4, rtol=1e-4)
    engine.close()


@NATIVE
def test_a_decoder_with_a_head_says_what_transformers_says(tiny_model, tmp_path, native):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(tiny_model("qwen3"))
    config.num_labels, config.pad_token_id = 3, 0
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    for file in tiny_model("qwen3").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with use(library() if native else None):
        llm = LLM(str(tmp_path), dtype="float32", kv_cache_bytes=2**23, max_num_batched_tokens=16, progress=False)
    logits = llm.classify(PROMPTS, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    probabilities = llm.classify(PROMPTS, use_tqdm=False)
    for prompt, raw, output in zip(PROMPTS, logits, probabilities, strict=True):
        with torch.inference_mode():
            wanted = model(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt))).logits[0]
        torch.testing.assert_close(torch.tensor(raw.outputs.probs), wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(output.outputs.probs), wanted.softmax(0), atol=1e-4, rtol=1e-4)
    with pytest.raises(BadRequest, match="cannot generate text: it can"):
        llm.generate([[1]], use_tqdm=False)
    llm.close()


@pytest.fixture(scope="module")
def engines(tiny_model):
    """Engines by method and budget; each keeps its prefix cache from example to example."""
    made: dict[tuple, Engine] = {}

    def get(method: str, budget: int, ahead: bool) -> Engine:
        if (method, budget, ahead) not in made:
            settings = {"max_num_batched_tokens": budget, "async_scheduling": ahead, "dtype": "bfloat16"}
            made[method, budget, ahead] = engine_of(tiny_model("gemma3"), method, native=True, **settings)
        return made[method, budget, ahead]

    yield get
    for engine in made.values():
        engine.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60), min_size=1, max_size=6),
    budget=st.sampled_from([16, 23, 200]),
    ahead=st.booleans(),
    method=st.sampled_from(["last", "mean"]),
    beside=st.booleans(),
)
def test_native_vectors_have_the_same_bits_alone_and_in_any_company(engines, texts, budget, ahead, method, beside):
    alone = [vectors(engines(method, 400, False), [text])[0] for text in texts]
    assert vectors(engines(method, budget, ahead), texts, texts[:2] if beside else ()) == alone


def test_ranks_make_the_same_vectors(tiny_model):
    whole = engine_of(tiny_model("llama3"), "mean", native=True)
    cut = engine_of(tiny_model("llama3"), "mean", native=True, tensor_parallel_size=2)
    one, two = (np.array([np.frombuffer(v, "<f4") for v in vectors(each, PROMPTS)]) for each in (whole, cut))
    np.testing.assert_allclose(one, two, atol=1e-4)
    cut.close()


def batch(rows: list[tuple[str, int, int, bool]]) -> StepBatch:
    """A step of rows (method, tokens computed before, tokens, whether they end the prompt)."""
    counts = [count for _, _, count, _ in rows]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lens = np.array([start + count for _, start, count, _ in rows], np.int32)
    pooled = [PooledRow(i, start, last, "embed", method) for i, (method, start, _, last) in enumerate(rows)]
    sampling = SamplingRows(*[NONE] * 8)
    return StepBatch(
        np.zeros(starts[-1], np.int32), starts, lens, np.zeros((len(rows), 1)), [], sampling, pooled=pooled
    )


def test_only_states_that_count_are_asked_for():
    step = batch(
        [("last", 0, 3, True), ("last", 0, 3, False), ("cls", 0, 2, False), ("cls", 2, 2, True), ("mean", 4, 2, True)]
    )
    assert pooled_tokens(step).tolist() == [2, 6, 10, 11]


@settings(max_examples=50, deadline=None)
@given(cuts=st.sets(st.integers(1, 19)), again=st.booleans(), seed=st.integers(0, 99))
def test_a_mean_has_the_same_bits_however_it_is_cut(cuts, again, seed):
    states = np.random.default_rng(seed).normal(size=(20, 3)).astype(np.float32) * 50
    (whole,) = pool(batch([("mean", 0, 20, True)]), states).values()
    edges = [0, *sorted(cuts), 20]
    parts = [*itertools.pairwise(edges)]
    row, vector = batch([("mean", 0, 1, False)]).pooled[0], None
    for first, end in [*(parts[:-1] if again else []), *parts]:  # what was begun and preempted does not count
        step = batch([("mean", first, end - first, end == 20)])
        step.pooled = [PooledRow(0, first, end == 20, "embed", "mean", so_far=row.so_far)]
        vector = pool(step, states[first:end]).get(0)
    assert vector.tobytes() == whole.tobytes()
    np.testing.assert_allclose(whole, states.mean(0), rtol=1e-5, atol=1e-5)
