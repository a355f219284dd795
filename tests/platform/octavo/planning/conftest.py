"""The usual suspects: the sizes that their public configs give."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.planning.shape import Shape, shape_of

_LLAMA3 = {"model_type": "llama", "vocab_size": 128_256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
           "rope_theta": 500_000.0, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}  # fmt: skip
_GEMMA = {"model_type": "gemma", "vocab_size": 256_000, "head_dim": 256, "max_position_embeddings": 8192,
          "torch_dtype": "bfloat16"}  # fmt: skip
_FALCON = {"model_type": "falcon", "vocab_size": 65_024, "bias": False, "alibi": False, "parallel_attn": True,
           "torch_dtype": "bfloat16"}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "google/gemma-2b": _GEMMA | {"hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 18,
                                 "num_attention_heads": 8, "num_key_value_heads": 1},
    "google/gemma-7b": _GEMMA | {"hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28,
                                 "num_attention_heads": 16, "num_key_value_heads": 16},
    "meta-llama/Meta-Llama-3-8B": _LLAMA3 | {"hidden_size": 4096, "intermediate_size": 14_336,
                                             "num_hidden_layers": 32, "num_attention_heads": 32},
    "meta-llama/Meta-Llama-3-70B": _LLAMA3 | {"hidden_size": 8192, "intermediate_size": 28_672,
                                              "num_hidden_layers": 80, "num_attention_heads": 64},
    "mistralai/Mixtral-8x7B-v0.1": {
        "model_type": "mixtral", "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 32_768, "torch_dtype": "bfloat16"},
    "tiiuae/falcon-7b": _FALCON | {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
                                   "multi_query": True, "new_decoder_architecture": False},
    "tiiuae/falcon-40b": _FALCON | {"hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128,
                                    "num_kv_heads": 8, "new_decoder_architecture": True},
    "tiiuae/falcon-180B": _FALCON | {"hidden_size": 14_848, "num_hidden_layers": 80, "num_attention_heads": 232,
                                     "num_kv_heads": 8, "new_decoder_architecture": True},
    "bigscience/bloom": {"model_type": "bloom", "vocab_size": 250_880, "n_embed": 14_336, "n_layer": 70,
                         "num_attention_heads": 112, "seq_length": 2048, "torch_dtype": "bfloat16"},
}  # fmt: skip
"""Hub id -> config."""


@pytest.fixture(scope="session")
def configs() -> dict[str, dict[str, Any]]:
    return CONFIGS


@pytest.fixture(params=sorted(CONFIGS))
def suspect(request: pytest.FixtureRequest) -> str:
    """Every one of the usual suspects, a test each."""
    return str(request.param)


@pytest.fixture
def llama_8b() -> Shape:
    return shape_of(CONFIGS["meta-llama/Meta-Llama-3-8B"])


@pytest.fixture
def mixtral() -> Shape:
    return shape_of(CONFIGS["mistralai/Mixtral-8x7B-v0.1"])
