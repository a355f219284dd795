"""Configs of both generations of transformers, and what is refused."""

import json

import pytest

from octavo.errors import ModelError
from octavo.models.families.reading import spec_from_config
from octavo.models.spec import LinearScaling, Llama3Scaling, Rope

CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "mixtral": "MixtralConfig",
    "qwen2_moe": "Qwen2MoeConfig",
    "qwen3_moe": "Qwen3MoeConfig",
    "gpt_oss": "GptOssConfig",
    "glm4_moe": "Glm4MoeConfig",
    "mpt": "MptConfig",
    "ministral": "MinistralConfig",
    "ministral3": "Ministral3Config",
    "seed_oss": "SeedOssConfig",
    "internlm3": "InternLM3Config",
    "arcee": "ArceeConfig",
    "nemotron": "NemotronConfig",
    "ernie4_5": "Ernie4_5Config",
    "phi": "PhiConfig",
    "phi3": "Phi3Config",
    "glm": "GlmConfig",
    "glm4": "Glm4Config",
    "olmo": "OlmoConfig",
    "olmo2": "Olmo2Config",
    "olmo3": "Olmo3Config",
    "granite": "GraniteConfig",
    "olmoe": "OlmoeConfig",
    "flex_olmo": "FlexOlmoConfig",
    "dots1": "Dots1Config",
    "ernie4_5_moe": "Ernie4_5_MoeConfig",
    "granitemoe": "GraniteMoeConfig",
    "granitemoeshared": "GraniteMoeSharedConfig",
    "smollm3": "SmolLM3Config",
    "cohere": "CohereConfig",
    "cohere2": "Cohere2Config",
    "exaone4": "Exaone4Config",
    "stablelm": "StableLmConfig",
    "gpt2": "GPT2Config",
    "gptj": "GPTJConfig",
    "gpt_neox": "GPTNeoXConfig",
    "starcoder2": "Starcoder2Config",
    "gpt_bigcode": "GPTBigCodeConfig",
    "bloom": "BloomConfig",
    "falcon": "FalconConfig",
    "opt": "OPTConfig",
}


_LEAST = {"glm4_moe": {"head_dim": 128}, "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6,
          "n_shared_experts": 2}}  # fmt: skip
"""Settings without which a type's defaults make no model."""


def through_transformers(config):
    """The config as transformers understands and rewrites it."""
    import transformers

    name = {"gemma3": "Gemma3Config"} | CLASSES
    return json.loads(getattr(transformers, name[config["model_type"]])(**config).to_json_string(use_diff=False))


@pytest.mark.parametrize("model_type", CLASSES)
def test_what_a_config_leaves_out_means_what_transformers_takes_it_for(model_type):
    config = {"model_type": model_type} | _LEAST.get(model_type, {})
    assert spec_from_config(config) == spec_from_config(through_transformers(config))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
VARIATIONS = [
    ("llama", {"head_dim": None}),
    ("llama", {"head_dim": 64}),
    ("llama", {"num_key_value_heads": None}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}}),
    ("llama", {"rope_scaling": YARN | {"attention_factor": 0.5, "beta_fast": 16}}),
    ("llama", {"rope_parameters": YARN | {"rope_theta": 5e5, "mscale": 0.7, "mscale_all_dim": 1.0}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 1024, "head_dim": 64}),
    ("mixtral", {"sliding_window": 1024}),
    ("phi3", {"sliding_window": 512, "partial_rotary_factor": 0.5}),
    ("qwen2", {"use_sliding_window": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}),
    ("qwen2", {"num_hidden_layers": 2, "use_sliding_window": True,
               "layer_types": ["sliding_attention", "full_attention"]}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3", {"head_dim": 64}),
    ("qwen2_moe", {"norm_topk_prob": True, "num_experts": 8}),
    ("qwen3_moe", {"num_experts": 8, "head_dim": 64}),
    ("qwen3_moe", {"mlp_only_layers": [0, 3], "decoder_sparse_step": 2}),
    ("gpt_oss", {"num_local_experts": 32, "num_hidden_layers": 24, "rope_theta": 1e5}),
    ("glm4_moe", {"head_dim": 128, "first_k_dense_replace": 3, "n_group": 2, "rope_theta": 1e6}),
    ("gemma", {"hidden_activation": None, "hidden_act": "gelu_pytorch_tanh"}),
    ("gemma", {"tie_word_embeddings": False}),
    ("gemma2", {"query_pre_attn_scalar": 144, "attn_logit_softcapping": None}),
    ("gemma2", {"sliding_window": 128, "num_hidden_layers": 5}),
    ("gemma3_text", {"sliding_window_pattern": 2, "num_hidden_layers": 5}),
    ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 5e3}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "changes"), VARIATIONS)
def test_settings_mean_what_transformers_takes_them_for(model_type, changes):
    config = {"model_type": model_type} | changes
    assert spec_from_config(config) == spec_from_config(through_transformers(config))


# As published with the models, cut to what matters here.
LLAMA_2 = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
           "num_hidden_layers": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
           "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16", "vocab_size": 32000,
           "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LLAMA_3_1 = {"model_type": "llama", "attention_bias": False, "bos_token_id": 128000,
             "eos_token_id": [128001, 128008, 128009], "hidden_size": 4096, "intermediate_size": 14336,
             "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 32,
             "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128256,
             "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 8192, "rope_type": "llama3"}}  # fmt: skip
LLAMA_LINEAR = LLAMA_2 | {"rope_scaling": {"type": "linear", "factor": 8.0}, "max_position_embeddings": 32768}
LLAMA_DYNAMIC = LLAMA_2 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
MISTRAL_1 = {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
             "num_hidden_layers": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
             "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000}  # fmt: skip
MISTRAL_3 = MISTRAL_1 | {"sliding_window": None, "rope_theta": 1e6, "vocab_size": 32768}
QWEN_2_5 = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
            "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "sliding_window": 32768, "tie_word_embeddings": True,
            "use_sliding_window": False, "vocab_size": 151936, "eos_token_id": 151645}  # fmt: skip
QWEN_2_5_YARN = QWEN_2_5 | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
GEMMA_3_4B = {"model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {"model_type": "siglip_vision_model"},
              "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                              "num_hidden_layers": 34, "sliding_window": 1024,
                              "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}}  # fmt: skip
GEMMA_3_1B = {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
              "num_hidden_layers": 26, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256,
              "rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None, "sliding_window": 512,
              "sliding_window_pattern": 6, "max_position_embeddings": 32768, "vocab_size": 262144,
              "attn_logit_softcapping": None, "final_logit_softcapping": None, "cache_implementation": "hybrid",
              "eos_token_id": [1, 106]}  # fmt: skip
OLD = [LLAMA_2, LLAMA_3_1, LLAMA_LINEAR, MISTRAL_1, MISTRAL_3, QWEN_2_5, QWEN_2_5_YARN, GEMMA_3_1B]


@pytest.mark.parametrize("config", OLD, ids=lambda config: config["model_type"])
def test_old_and_new_generation_give_one_spec(config):
    new = through_transformers(config)
    assert "rope_parameters" in new
    assert "rope_theta" not in new
    assert spec_from_config(config) == spec_from_config(new)


def test_llama_3_1():
    spec = spec_from_config(LLAMA_3_1)
    assert spec.rope == Rope(500000.0, 128, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    assert spec.eos_token_ids == (128001, 128008, 128009)
    assert spec.max_position_embeddings == 131072


def test_dynamic_scaling_changes_nothing_within_the_models_length():
    assert spec_from_config(LLAMA_DYNAMIC) == spec_from_config(LLAMA_2)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LLAMA_2 | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        (LLAMA_2 | {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, 10240),
        (LLAMA_2 | {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1e4}}, 16384),
        (LLAMA_2 | {"rope_scaling": {"type": "linear", "factor": 4.0, "original_max_position_embeddings": 1024}}, 4096),
        (LLAMA_2 | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 4096),
        (LLAMA_3_1, 131072),
        (GEMMA_3_4B, 131072),
        (QWEN_2_5_YARN, 131072),
    ],
)
def test_scaling_that_lengthens_the_context(config, positions):
    assert spec_from_config(config).max_position_embeddings == positions


@pytest.mark.parametrize(
    "key", ["rope_theta", "hidden_act", "tie_word_embeddings", "max_position_embeddings", "head_dim"]
)
def test_null_means_left_out(key):
    config = {k: v for k, v in LLAMA_2.items() if k != key}
    assert spec_from_config(config | {key: None}) == spec_from_config(config)


def test_mistral_windows():
    assert spec_from_config(MISTRAL_1).windows == (4096,) * 32
    assert spec_from_config(MISTRAL_3).windows == (None,) * 32


def test_qwen_windows_and_yarn():
    assert spec_from_config(QWEN_2_5).windows == (None,) * 24
    assert spec_from_config(QWEN_2_5 | {"use_sliding_window": True}).windows == (None,) * 21 + (32768,) * 3
    assert spec_from_config(QWEN_2_5_YARN).max_position_embeddings == 131072


def test_gemma_3_takes_text_config_and_its_defaults():
    spec = spec_from_config(GEMMA_3_4B)
    assert spec.windows[:7] == (1024,) * 5 + (None, 1024)
    assert spec.rope == Rope(1e6, 256, LinearScaling(8.0))
    assert spec.local_rope == Rope(1e4, 256)
    assert [spec.layer_rope(layer) for layer in (4, 5)] == [spec.local_rope, spec.rope]
    assert (spec.vocab_size, spec.num_heads, spec.num_kv_heads) == (262208, 8, 4)
    assert spec.eos_token_ids == (1, 106)
    assert spec.tied_embeddings
    assert spec_from_config(through_transformers(GEMMA_3_4B)) == spec


def test_first_gemma_configs_say_gelu_and_mean_tanh():
    assert spec_from_config({"model_type": "gemma", "hidden_act": "gelu"}).activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "'mamba'.*gemma3.*llama.*qwen3"),
        ({"model_type": None}, "None"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'"),
        ({"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "rope scaling 'mrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"logit_scale": 0.5}, "logit_scale 0.5 is not supported in models of type 'llama'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "GPTQ"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"num_key_value_heads": 5}, "32 query heads.*5 key-value"),
        ({"hidden_size": "large"}, "config is damaged"),
        ({"rms_norm_eps": "small"}, "norm_eps is small, which is not a number"),
        ({"rope_theta": float("nan")}, "theta is nan"),
        ({"intermediate_size": 100.5}, "intermediate_size is 100.5, which is not a whole number"),
        ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "factor of the rope scaling is 0"),
        ({"model_type": "mistral", "sliding_window": -4}, "sliding_window is -4"),
        ({"model_type": "mistral", "sliding_window": 1 << 70}, "sliding_window is 1180591620717411303424, which"),
        ({"num_attention_heads": 0}, "config is damaged"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": 1 << 40}, "which those of no model have"),
        ({"num_hidden_layers": 10**15}, "num_hidden_layers is 1000000000000000"),
        ({"max_position_embeddings": float("inf")}, "max_position_embeddings is inf, which no model has"),
        ({"max_position_embeddings": 10**30}, "which no model has"),
        ({"rope_scaling": {"rope_type": "factors", "factors": [2.0] * 3}}, "3 factors; it must have 64"),
        ({"model_type": ["llama"]}, "models of type"),
        ({"eos_token_id": {"a": 1}}, "token id is"),
        ({"model_type": "gpt_bigcode", "scale_attn_weights": False}, "scale_attn_weights False is not supported"),
        ({"model_type": "ernie4_5_moe", "moe_norm_min": 0.1}, "moe_norm_min 0.1 is not supported"),
        ({"model_type": "qwen3_5_text", "hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"model_type": "granitemoehybrid", "time_step_limit": [0.1, 1.0]}, "time_step_limit .* is not supported"),
        ({"model_type": "smollm3", "layer_types": ["sliding_attention"] * 32}, "layers with a window are not"),
        ({"model_type": "gptj", "tie_word_embeddings": True}, "is the embedding table and has a bias"),
        ({"head_dim": 7}, "rotary positions over 7 of 7"),
        ({"model_type": "glm", "partial_rotary_factor": 2.0}, "rotary positions over 256 of 128"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported in models of type 'llama'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not"),
        ({"is_causal": False}, "is_causal False is not supported"),
        ({"model_type": "qwen3_moe", "use_sliding_window": True}, "use_sliding_window True is not supported"),
    ],
)
def test_what_is_not_supported_is_named(change, named):
    with pytest.raises(ModelError, match=named):
        spec_from_config(LLAMA_2 | change)


def test_what_a_familys_code_fixes_no_config_changes():
    assert spec_from_config({"model_type": "olmo", "rms_norm_eps": 0.1}).norm_eps == 1e-5
    assert spec_from_config({"model_type": "opt", "rms_norm_eps": 0.1}).norm_eps == 1e-5
    assert spec_from_config({"model_type": "bloom", "hidden_act": "relu"}).activation == "gelu_tanh"
    assert spec_from_config({"model_type": "lfm2", "hidden_act": "gelu"}).activation == "silu"


ALTERNATING = ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("model_type", "windows"),
    [
        ("llama", (None,) * 3),
        ("granite", (None,) * 3),
        ("phi3", (8, 8, 8)),
        ("mixtral", (8, 8, 8)),
        ("mistral", (None, 8, None)),  # which transformers takes for Ministral then
        ("gemma2", (None, 8, None)),
    ],
)
def test_windows_that_another_family_would_have_are_passed_over(model_type, windows):
    config = {"model_type": model_type, "sliding_window": 8, "num_hidden_layers": 3, "layer_types": ALTERNATING}
    for use in (True, False):
        leftovers = {"use_sliding_window": use, "max_window_layers": 2, "sliding_window_pattern": 2}
        assert spec_from_config(config | leftovers).windows == windows


def test_unknown_layer_types_are_named():
    config = {"model_type": "gemma2", "num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]}
    with pytest.raises(ModelError, match="linear_attention"):
        spec_from_config(config)
    with pytest.raises(ModelError, match="2 of 3 layers"):
        spec_from_config(config | {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 2})
