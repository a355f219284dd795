"""Random weights in place of a checkpoint."""

from __future__ import annotations

import shutil

import torch

from octavo import LLM, SamplingParams
from octavo.models.load import load_model
from octavo.source import resolve_source


def test_random_weights_need_only_the_config(tiny_model, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model("gemma2") / name, tmp_path)
    decoder = load_model(resolve_source(str(tmp_path)), load_format="dummy", quantization="int8")
    layer = decoder.weights.layers[1]
    assert 0.01 < decoder.weights.embedding.std() < 0.03
    assert layer.attention_norm.weight.tolist() == [1.0] * 64
    assert layer.qkv.multiply(torch.randn(3, 64)).isfinite().all()
    llm = LLM(str(tmp_path), load_format="dummy", kv_cache_bytes=2**20, progress=False)
    assert len(llm.generate("x", SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)[0].outputs) == 1
    llm.close()
