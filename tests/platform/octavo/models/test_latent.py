"""Latent attention: one record per token is all that is kept, and what cannot be done over it is said."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch

from octavo import LLM, LoRARequest, SamplingParams
from octavo.errors import ModelError
from octavo.execution.native_executor import NativeExecutor
from octavo.execution.torch_executor import TorchExecutor
from octavo.models.adapters import read_adapter
from octavo.models.latent import by_head
from octavo.models.parallel import share_of
from octavo.models.source_spec import read_spec
from octavo.models.spec import NO_ROPE
from octavo.planning.memory import Holding
from octavo.planning.shape import shape_of
from octavo.source import resolve_source

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=1)
PROMPTS = [list(range(start, start + length)) for start, length in ((0, 70), (0, 41), (30, 9), (100, 60), (7, 1))]
RECORD = 32 + 8  # values of a token's latent, and of its rotated part


@pytest.fixture
def load(tiny_model):
    """Loads the model; all are closed in the end."""
    loaded = []

    def make(**settings):
        loaded.append(LLM(str(tiny_model("latent")), progress=False, **{"kv_cache_bytes": 2**22} | settings))
        return loaded[-1]

    yield make
    for llm in loaded:
        llm.close()


def said(outputs):
    """Tokens, and the bits of their log probabilities."""
    return [
        [(token, row[token].logprob) for token, row in zip(one.token_ids, one.logprobs, strict=True)]
        for one in (output.outputs[0] for output in outputs)
    ]


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"kv_cache_dtype": "int8"}], ids=str)
def test_bits_are_the_same_with_the_cache_in_chunks_and_after_preemption(load, settings):
    alone = load(max_num_batched_tokens=512, enable_prefix_caching=False, **settings)
    expected = said([alone.generate([prompt], GREEDY, use_tqdm=False)[0] for prompt in PROMPTS])
    blocks = 9 * alone.engine.executor.kv.block_bytes  # for 144 of 261 tokens
    crowded = load(max_num_batched_tokens=24, **settings | {"kv_cache_bytes": blocks, "max_model_len": 128})
    assert said(crowded.generate(PROMPTS, GREEDY, use_tqdm=False)) == expected
    assert crowded.engine.scheduler.counters.preemptions > 0
    cached = load(max_num_batched_tokens=24, **settings)
    assert said(cached.generate(PROMPTS, GREEDY, use_tqdm=False)) == expected
    again = cached.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert said(again) == expected
    assert sum(output.num_cached_tokens for output in again) > 100


@pytest.mark.parametrize(("settings", "padded", "size"), [
    ({"dtype": "float32"}, 48, 4), ({"dtype": "bfloat16"}, 48, 2), ({"dtype": "float16"}, 40, 2),
])  # fmt: skip
def test_a_token_takes_one_record_per_layer(load, tiny_model, settings, padded, size):
    executor = load(**settings).engine.executor
    assert isinstance(executor, TorchExecutor if settings["dtype"] == "float16" else NativeExecutor)
    assert executor.kv.block_bytes == 3 * 16 * padded * size  # the native cache pads records to cells of 16
    shape = shape_of(json.loads((tiny_model("latent") / "config.json").read_text()))
    holding = Holding(shape, "bfloat16", "bfloat16", None, "bfloat16", 2)
    assert holding.kv_bytes_per_token() == 3 * RECORD * 2  # every rank holds the whole record


def test_adapters_are_refused(load, tiny_model, make_adapter):
    adapter = make_adapter("llama2")
    with pytest.raises(ModelError, match="latent attention are not supported: merge"):
        read_adapter(adapter, share_of(read_spec(resolve_source(str(tiny_model("latent"))))))
    request = LoRARequest("one", 1, str(adapter))
    outputs = load().generate(PROMPTS[:2], GREEDY, use_tqdm=False, lora_request=[request, None])
    assert [output.outputs[0].finish_reason for output in outputs] == ["error", "length"]


def test_widths_that_the_native_runner_does_not_cut_run_on_torch(tiny_model, tmp_path, caplog):
    config = json.loads((tiny_model("latent") / "config.json").read_text()) | {"v_head_dim": 12}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model("latent") / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        llm = LLM(str(tmp_path), load_format="dummy", kv_cache_bytes=2**20, progress=False)
    assert isinstance(llm.engine.executor, TorchExecutor)
    assert any("heads have 12 values" in record.message for record in caplog.records)
    llm.close()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rounded_weights(load, dtype):
    """Matrices of latents keep their type; all others of a layer are rounded."""
    whole = load(dtype=dtype).generate(PROMPTS[:1], GREEDY, use_tqdm=False)
    rounded = load(dtype=dtype, quantization="int8").generate(PROMPTS[:1], GREEDY, use_tqdm=False)
    assert said(whole) != said(rounded)
    assert said(whole)[0][0] == pytest.approx(said(rounded)[0][0], abs=0.3)


def test_guesses_and_two_steps_in_flight_change_nothing(load):
    prompts = [[1, 2, 3, 4] * 8, PROMPTS[0]]
    plain, ahead = (
        said(load(**settings).generate(prompts, GREEDY, use_tqdm=False))
        for settings in ({"speculation": False}, {"speculation": True, "async_scheduling": True})
    )
    assert ahead == plain


def test_sizes_that_contradict_each_other_are_named(tiny_model):
    spec = read_spec(resolve_source(str(tiny_model("latent"))))
    assert spec.latent is not None
    with pytest.raises(ModelError, match="caches no records of 41"):
        replace(spec, head_dim=41)
    with pytest.raises(ModelError, match="without rotary positions"):
        replace(spec, head_dim=32, rope=NO_ROPE)
    with pytest.raises(ModelError, match="windows"):
        replace(spec, windows=(4, None, None))
    with pytest.raises(ModelError, match="biases"):
        replace(spec, qkv_bias=True, latent=replace(spec.latent, query_size=0))
    with pytest.raises(ModelError, match="latent attention of 0 values"):
        replace(spec.latent, size=0)


def test_products_by_head():
    x, weight = torch.randn(5, 3, 4), torch.randn(3 * 6, 4)
    expected = torch.stack([x[:, i] @ weight[6 * i : 6 * i + 6].T for i in range(3)], 1)
    for one_order in (False, True):
        torch.testing.assert_close(by_head(x, weight, one_order=one_order), expected)
