"""Padded decode steps at fixed addresses, with a `capture` that runs the function again: what is replayed on a GPU."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError
from octavo.execution import torch_executor
from octavo.execution.graphs import padded_sizes
from octavo_kernels.native import library

PROMPTS = [[5, 9, 200], list(range(30)), [7] * 17, list(range(100, 140)), [3]]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=20, ignore_eos=True),
    SamplingParams(n=2, temperature=0.9, seed=1, top_p=0.9, max_tokens=24, logprobs=2),
    SamplingParams(temperature=0.8, seed=2, top_k=20, repetition_penalty=1.3, max_tokens=28, presence_penalty=0.3),
    SamplingParams(temperature=1, seed=3, min_tokens=9, max_tokens=30, stop_token_ids=[7], prompt_logprobs=1),
    SamplingParams(temperature=0, max_tokens=12, logit_bias={7: 3.0}, frequency_penalty=0.5),
]


@pytest.fixture
def torch_llm(tiny_model):
    """`torch_llm(name, **settings)`: a model on the torch runner."""
    opened = []

    def get(name: str, **settings) -> LLM:
        settings = {"dtype": "float32", "kv_cache_bytes": 2**19, "progress": False, **settings}
        with library.use(None):
            opened.append(LLM(str(tiny_model(name)), **settings))
        return opened[-1]

    yield get
    for llm in opened:
        llm.close()


def as_on_a_gpu(llm, capture=lambda function: function):
    """Graphs, and steps that are begun before the one before has ended."""
    executor = llm.engine.executor
    executor.use_graphs(llm.engine.limits.max_model_len, capture)
    executor.max_in_flight = 2
    return llm


def said(llm, prompts=PROMPTS, params=PARAMS):
    return [
        (line.token_ids, line.finish_reason, line.logprobs and [sorted(entry) for entry in line.logprobs])
        for output in llm.generate(prompts, params, use_tqdm=False)
        for line in output.outputs
    ]


def test_sizes_are_few_and_hold_the_largest_batch():
    assert padded_sizes(1) == [1]
    assert padded_sizes(9) == [1, 2, 4, 8, 16]
    assert padded_sizes(256)[-3:] == [240, 248, 256]
    assert padded_sizes(300)[-3:] == [256, 288, 320]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("llama3", {}), ("mixtral", {}), ("gemma3", {}), ("qwen3", {"kv_cache_dtype": "int8"}), ("mpt", {})],
)
def test_padded_steps_say_what_others_say(torch_llm, name, settings):
    ours, theirs = as_on_a_gpu(torch_llm(name, **settings)), torch_llm(name, **settings)
    assert said(ours) == said(theirs)
    assert set(ours.engine.executor._graphs._replays) == {1, 2, 4, 8}
    assert said(ours) == said(theirs)  # again, with a warm cache


def test_they_do_so_after_preemptions_and_with_small_chunks(torch_llm):
    small = {"kv_cache_bytes": 2**17, "max_num_batched_tokens": 16, "max_model_len": 96}
    ours, theirs = as_on_a_gpu(torch_llm("llama3", **small)), torch_llm("llama3", **small)
    many, params = PROMPTS * 3, PARAMS * 3
    assert said(ours, many, params) == said(theirs, many, params)
    assert ours.engine.stats().counters.preemptions > 0


def test_padding_is_stored_where_nobody_reads(torch_llm):
    llm = as_on_a_gpu(torch_llm("llama3"))
    executor = llm.engine.executor
    llm.generate(PROMPTS[:3], PARAMS[0], use_tqdm=False)  # three rows of four
    keys = executor._kv.layers[0][0]
    assert keys[executor._kv.spare_block, 0].any()
    assert not keys[executor._kv.spare_block, 1:].any()
    used = {block for block in range(llm.engine.pool.num_blocks) if keys[block].any()}
    assert len(used) == sum(-(-(len(prompt) + 19) // 16) for prompt in PROMPTS[:3])


def test_only_rows_that_changed_are_copied(torch_llm, monkeypatch):
    llm = as_on_a_gpu(torch_llm("llama3"))
    inputs = llm.engine.executor._graphs._inputs
    copied, plain = [0], torch.Tensor.index_copy_

    def count(self, dim, index, source):
        copied[0] += len(index) if self.data_ptr() == inputs.block_tables.data_ptr() else 0
        return plain(self, dim, index, source)

    monkeypatch.setattr(torch.Tensor, "index_copy_", count)
    params = SamplingParams(temperature=0, max_tokens=33, ignore_eos=True)
    llm.generate([[1, 2, 3], [4, 5, 6]], params, use_tqdm=False)
    assert copied[0] == 2 * 3  # 35 tokens each: three blocks
    assert inputs.block_tables.tolist() == inputs._tables.tolist()


def test_a_step_that_draws_nothing_is_waited_for(torch_llm, monkeypatch):
    waits = []
    monkeypatch.setattr(torch_executor, "fetch", lambda *tensors: lambda: waits.append(tensors))
    llm = as_on_a_gpu(torch_llm("llama3", max_num_batched_tokens=16))
    llm.generate([list(range(60))], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), use_tqdm=False)
    assert len(waits) == 3  # chunks of 16, 16 and 16 before the one that draws


def test_closing_frees_the_memory_at_once(tiny_model):
    def capture(function):
        out = function()
        return lambda: out  # as a graph, it does not hold the function

    with library.use(None):
        llm = as_on_a_gpu(LLM(str(tiny_model("llama3")), kv_cache_bytes=2**19, progress=False), capture)
    llm.generate(PROMPTS[:1], PARAMS[0], use_tqdm=False)
    cache = weakref.ref(llm.engine.executor._kv)
    gc.disable()
    llm.close()
    gc.enable()
    assert cache() is None


def test_without_capture_it_goes_on_and_says_so_once(torch_llm, caplog):
    def refuse(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    ours, theirs = as_on_a_gpu(torch_llm("llama3"), refuse), torch_llm("llama3")
    with caplog.at_level(logging.WARNING):
        assert said(ours) == said(theirs)
    assert [r.message for r in caplog.records if "not permitted" in r.message] == [
        "decode steps run without CUDA graphs: a step could not be captured: "
        "operation not permitted when stream is capturing"
    ]


def test_the_order_of_sums_is_the_decoders(torch_llm):
    """On a CPU the switch is refused; thrown by hand, steps with and without graphs are laid out for it."""
    with pytest.raises(ConfigError, match="batch_invariant is not for the torch runner on a CPU"):
        torch_llm("llama3", batch_invariant=True)
    ours, theirs = torch_llm("llama3"), torch_llm("llama3")
    decoder = ours.engine.executor._decoder
    decoder.keep_one_order()
    layouts, forward = [], decoder.forward
    decoder.forward = lambda tokens, context: layouts.append(context.layout) or forward(tokens, context)
    assert said(as_on_a_gpu(ours)) == said(theirs)
    assert {layout.split_keys for layout in layouts} == {512}
    assert {layout.max_query_len for layout in layouts} > {1}
