"""Counted parameters against models without weights."""

import json

import pytest

from octavo.errors import ModelError
from octavo.planning.memory import Holding
from octavo.planning.shape import shape_of

PUBLISHED = {
    # billions of parameters, as model cards and papers give them
    "google/gemma-2b": 2.51, "google/gemma-7b": 8.54, "meta-llama/Meta-Llama-3-8B": 8.03,
    "meta-llama/Meta-Llama-3-70B": 70.55, "mistralai/Mixtral-8x7B-v0.1": 46.7, "tiiuae/falcon-40b": 41.3,
    # these two count the output matrix, although it is tied to the embeddings
    "tiiuae/falcon-7b": 7.22 - 65_024 * 4544 / 1e9, "tiiuae/falcon-180B": 179.5 - 65_024 * 14_848 / 1e9,
    "bigscience/bloom": 176.25,
}  # fmt: skip


def counted_by_transformers(config):
    import transformers
    from accelerate import init_empty_weights

    config = dict(config)
    made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(made)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def test_usual_suspects_are_counted_as_transformers_does(suspect, configs):
    assert shape_of(configs[suspect]).parameters == counted_by_transformers(configs[suspect])


def test_usual_suspects_are_as_large_as_published(suspect, configs):
    assert shape_of(configs[suspect]).parameters / 1e9 == pytest.approx(PUBLISHED[suspect], rel=0.002)


FALCON = {
    "model_type": "falcon",
    "vocab_size": 320,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}
BLOOM = {"model_type": "bloom", "vocab_size": 320, "hidden_size": 96, "n_layer": 3, "n_head": 6}
MIXTRAL = {
    "model_type": "mixtral", "vocab_size": 320, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
    "intermediate_size": 72, "num_local_experts": 5, "num_experts_per_tok": 3, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        FALCON,
        FALCON | {"bias": True, "multi_query": False, "parallel_attn": False, "alibi": True},
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 100, "bias": True},
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1},
        FALCON | {"tie_word_embeddings": False},
        BLOOM,
        BLOOM | {"tie_word_embeddings": False},
        MIXTRAL | {"num_key_value_heads": 3, "head_dim": 20},
        MIXTRAL | {"num_key_value_heads": 6, "tie_word_embeddings": True},
    ],
)
def test_variants_are_counted_as_transformers_does(config):
    assert shape_of(config).parameters == counted_by_transformers(config)


def test_every_family_is_counted_as_transformers_does(tiny_name, tiny_model):
    assert_counts_what_is_stored(tiny_model(tiny_name))


@pytest.mark.parametrize("name", ["mpt", "qwen3_moe_dense"])
def test_families_of_the_torch_runner_are_counted_too(tiny_model, name):
    assert_counts_what_is_stored(tiny_model(name))


def test_ranks_share_every_expert(tiny_model):
    shape = shape_of(json.loads((tiny_model("qwen2_moe") / "config.json").read_text()))
    experts = [Holding(shape, "float32", "float32", None, "float32", ranks).weight_bytes("expert") for ranks in (1, 2)]
    assert experts == [4 * 3 * 6 * 3 * 40 * 64, 4 * 3 * 6 * 3 * 20 * 64]  # bytes, layers, experts, matrices


def assert_counts_what_is_stored(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        sizes = {name: stored.get_tensor(name).numel() for name in stored.keys()}  # noqa: SIM118
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    if shape.tied_embeddings:
        sizes.pop("lm_head.weight", None)
    assert shape.parameters == sum(sizes.values())


def test_a_token_meets_two_of_eight_experts(mixtral):
    assert mixtral.active_parameters / 1e9 == pytest.approx(12.9, abs=0.05)  # Jiang et al. 2024


def test_an_unknown_architecture_is_named_with_those_that_are_known():
    with pytest.raises(ModelError, match=r"'mamba' are not supported; supported types are .*bloom.*falcon"):
        shape_of({"model_type": "mamba"})
