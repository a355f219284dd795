"""The engine on a GPU: what it says, in graphs, ahead of time, quantised; what it does with memory."""

from __future__ import annotations

import logging

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.errors import ModelError

pytestmark = pytest.mark.gpu

PROMPTS = [[5, 9, 200], list(range(30)), [7] * 17, list(range(100, 140)), [3]]
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
PARAMS = [
    GREEDY,
    SamplingParams(n=2, temperature=0.9, seed=1, top_p=0.9, max_tokens=24, logprobs=2),
    SamplingParams(temperature=0.8, seed=2, top_k=20, repetition_penalty=1.3, max_tokens=28, presence_penalty=0.3),
    SamplingParams(temperature=1, seed=3, min_tokens=9, max_tokens=30, stop_token_ids=[7], prompt_logprobs=1),
    SamplingParams(temperature=0, max_tokens=12, logit_bias={7: 3.0}, frequency_penalty=0.5),
]


def said(llm, prompts=PROMPTS, params=PARAMS):
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [(line.token_ids, line.finish_reason) for output in outputs for line in output.outputs]


def test_every_family_is_greedy_like_transformers(gpu_llm, tiny_model, tiny_name):
    from transformers import AutoModelForCausalLM

    outputs = gpu_llm(tiny_name, max_num_batched_tokens=16).generate(PROMPTS, GREEDY, use_tqdm=False)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model(tiny_name), dtype=torch.float32, attn_implementation="eager"
    ).cuda()
    for output in outputs:
        tokens = output.outputs[0].token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([output.prompt_token_ids + tokens[:-1]]).cuda()).logits[0]
        assert tokens == logits[len(output.prompt_token_ids) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("name", ["llama3", "gemma2", "gemma3", "qwen3", "mistral", "mixtral"])
def test_graphs_and_steps_begun_early_say_what_plain_steps_say(gpu_llm, name, caplog):
    plain = said(gpu_llm(name, enforce_eager=True, async_scheduling=False))
    with caplog.at_level(logging.WARNING):
        graphed = gpu_llm(name, async_scheduling=False)
        assert said(graphed) == plain
    assert "CUDA graphs" not in caplog.text
    assert set(graphed.engine.executor._graphs._replays) == {1, 2, 4, 8}
    assert said(gpu_llm(name, enforce_eager=True)) == plain
    both = gpu_llm(name)
    assert both.engine.executor.max_in_flight == 2
    assert said(both) == plain
    assert said(both) == plain  # with a warm cache, and from graphs captured before


def test_so_they_do_after_preemptions(gpu_llm):
    small = {"kv_cache_bytes": 2**17, "max_num_batched_tokens": 16, "max_model_len": 96}
    ours, plain = gpu_llm("llama3", **small), gpu_llm("llama3", enforce_eager=True, async_scheduling=False)
    assert said(ours, PROMPTS * 3, PARAMS * 3) == said(plain, PROMPTS * 3, PARAMS * 3)
    assert ours.engine.stats().counters.preemptions > 0


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_quantised_weights_say_what_they_say_on_a_cpu(gpu_llm, tiny_model, quantization):
    ours = said(gpu_llm("llama3", quantization=quantization), params=GREEDY)
    cpu = LLM(str(tiny_model("llama3")), device="cpu", dtype="float32", kv_cache_bytes=2**21, progress=False,
              quantization=quantization)  # fmt: skip
    assert ours == said(cpu, params=GREEDY)
    cpu.close()


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "fp8"])
def test_caches_of_eight_bits_say_what_they_say_without_graphs(gpu_llm, kv_cache_dtype):
    ours = gpu_llm("llama3", kv_cache_dtype=kv_cache_dtype)
    assert said(ours) == said(gpu_llm("llama3", kv_cache_dtype=kv_cache_dtype, enforce_eager=True))


@pytest.mark.parametrize("name", ["llama3", "gemma2", "gemma3", "qwen3"])
def test_bits_do_not_depend_on_the_batch(gpu_llm, name):
    """Prompts alone and together, whole and in chunks, with a cold cache and a warm one: the same log probabilities."""
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=3)
    same = {"batch_invariant": True, "dtype": "bfloat16"}

    def bits(llm, batches):
        outputs = [output for batch in batches for output in llm.generate(batch, params, use_tqdm=False)]
        return [(line.token_ids, line.logprobs) for output in outputs for line in output.outputs]

    alone = bits(gpu_llm(name, **same, enforce_eager=True, enable_prefix_caching=False), [[p] for p in PROMPTS])
    together = gpu_llm(name, **same)
    assert bits(together, [PROMPTS]) == alone
    assert bits(together, [PROMPTS]) == alone
    assert bits(gpu_llm(name, **same, max_num_batched_tokens=16), [PROMPTS]) == alone


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(gpu_llm, dtype):
    lines = said(gpu_llm("llama3", dtype=dtype), params=GREEDY)
    assert [len(tokens) for tokens, _ in lines] == [20] * len(PROMPTS)


def test_the_pool_takes_the_share_it_was_given(gpu_llm):
    gpu_llm("llama3", kv_cache_bytes=None, gpu_memory_utilization=0.5)
    free, total = torch.cuda.mem_get_info()
    assert 0.3 < torch.cuda.memory_allocated() / total < 0.5
    assert free < 0.6 * total


def test_what_does_not_fit_is_told_with_what_would_help(gpu_llm):
    with pytest.raises(ModelError, match=r"weights take 0\.0 GiB.*What would help"):
        gpu_llm("llama3", kv_cache_bytes=None, gpu_memory_utilization=1e-4)
    with pytest.raises(ModelError, match="lower kv_cache_bytes"):
        gpu_llm("llama3", kv_cache_bytes=2**42)
