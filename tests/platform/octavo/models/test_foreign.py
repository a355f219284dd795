"""`runner: transformers` beside transformers alone: the same tokens, or a refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from octavo.engine.llm import LLM
from octavo.errors import ConfigError, ModelError
from octavo.models.source_spec import check_loadable, read_spec
from octavo.request import SamplingParams
from octavo.source import resolve_source

SIZES = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 258,
    "pad_token_id": 256,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 24,
}  # fmt: skip
"""Heads of keys are wider than those of values."""
COVERED = {
    "deepseek_v2": LATENT | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": LATENT,
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2},
    "gpt_oss": {"head_dim": 16, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": {"head_dim": 12},
    "hunyuan_v1_dense": {"head_dim": 12},
}


MIXED = ["full_attention", "conv", "full_attention"]
GATED = {
    "head_dim": 12, "num_experts": 4, "num_experts_per_tok": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
}  # fmt: skip
REFUSED = {"qwen3_next": (GATED, 2), "lfm2": ({"layer_types": MIXED}, 2), "mamba": ({}, 0)}
"""Settings, and how many of the three layers attend."""


@pytest.fixture
def written(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Callable[..., Path]:
    """`written(kind, **settings)` -> a random model of a kind that transformers has."""

    def write(kind: str, **settings: Any) -> Path:
        config = transformers.AutoConfig.for_model(kind, **SIZES | settings)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():  # as they come, attention hardly matters
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        model.save_pretrained(tmp_path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model("llama2") / name, tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize("kind", COVERED)
def test_tokens_are_those_of_transformers_alone(kind: str, written: Callable[..., Path]) -> None:
    """Three requests of different lengths at once, in chunks, over a prefix cache."""
    folder = written(kind, **COVERED[kind])
    alone = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    prompts = [torch.randint(250, (length,)).tolist() for length in (5, 61, 33)]
    llm = LLM(str(folder), runner="transformers", max_num_batched_tokens=24, kv_cache_bytes=2**22, progress=False)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    for _ in range(2):
        answers = llm.generate(prompts, params, use_tqdm=False)
        for prompt, answer in zip(prompts, answers, strict=True):
            expected = alone.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
            assert list(answer.outputs[0].token_ids) == expected[0, len(prompt) :].tolist()
    assert answers[1].num_cached_tokens > 0


@pytest.mark.parametrize("kind", REFUSED)
def test_what_keeps_its_state_elsewhere_is_refused(kind: str, written: Callable[..., Path]) -> None:
    settings, attending = REFUSED[kind]
    with pytest.raises(ModelError, match=f"of 3 layers, {attending} attend"):
        LLM(str(written(kind, **settings)), runner="transformers", progress=False)


def test_what_it_cannot_do_is_said(written: Callable[..., Path]) -> None:
    folder = written("helium", head_dim=12)
    with pytest.raises(ModelError, match=r"'helium' are not supported.*runner: transformers"):
        read_spec(resolve_source(str(folder)))
    with pytest.raises(ConfigError, match="leave quantization out"):
        check_loadable(resolve_source(str(folder), "transformers"), "int8", None)
    with pytest.raises(ConfigError, match="cuts no model"):
        LLM(str(folder), runner="transformers", tensor_parallel_size=2, progress=False)
    with pytest.raises(ConfigError, match="no batch_invariant"):
        LLM(str(folder), runner="transformers", batch_invariant=True, progress=False)
    llm = LLM(str(folder), runner="transformers", kv_cache_bytes=2**22, progress=False)
    assert "transformers' own code" in repr(llm)
