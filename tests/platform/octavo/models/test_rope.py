"""Rotary angles against transformers' own tables."""

import math

import pytest
import torch

from octavo.models.rope import cos_sin_table
from octavo.models.spec import FactorScaling, LinearScaling, Llama3Scaling, LongScaling, Rope, YarnScaling

CASES = {
    "plain": (None, {"rope_type": "default"}),
    "linear": (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        Llama3Scaling(8.0, 1.0, 4.0, 256),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 256},
    ),
    "yarn": (
        YarnScaling(4.0, 256, 32, 1, True, 1.1386294),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    ),
    "yarn_variant": (
        YarnScaling(4.0, 256, 16, 2, False, 0.7),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "beta_fast": 16, "beta_slow": 2,
         "truncate": False, "attention_factor": 0.7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rotary_dim", [64, 16])
@pytest.mark.parametrize("name", CASES)
def test_tables_equal_transformers(name, rotary_dim):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling, parameters = CASES[name]
    parameters = parameters | {"rope_theta": 500_000.0}
    config = LlamaConfig(
        hidden_size=rotary_dim, num_attention_heads=1, max_position_embeddings=1024, rope_parameters=parameters
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(1024)[None])
    table = cos_sin_table(Rope(500_000.0, rotary_dim, scaling), 1024)
    assert table.dtype == torch.float32
    half = rotary_dim // 2
    torch.testing.assert_close(table, torch.cat([cos[0, :, :half], sin[0, :, :half]], 1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("positions", [256, 1024])
def test_the_longest_sequence_decides_between_two_sets_of_divisors(positions):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    short, long = [1.0, 1.5, 2.0, 2.5], [2.0, 4.0, 6.0, 8.0]
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long,
                  "factor": 4.0, "original_max_position_embeddings": 256}  # fmt: skip
    config = LlamaConfig(hidden_size=8, num_attention_heads=1, max_position_embeddings=1024, rope_parameters=parameters)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(positions)[None])
    scaling = LongScaling(tuple(short), tuple(long), 256, (1 + math.log(4) / math.log(256)) ** 0.5)
    table = cos_sin_table(Rope(1e4, 8, scaling), positions)
    torch.testing.assert_close(table, torch.cat([cos[0, :, :4], sin[0, :, :4]], 1), atol=2e-6, rtol=0)


def test_factors_divide_each_frequency():
    table = cos_sin_table(Rope(10_000.0, 4, FactorScaling((1.0, 2.0))), 3)
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.005], [2.0, 0.01]])
    torch.testing.assert_close(table, torch.cat([angles.cos(), angles.sin()], 1))
