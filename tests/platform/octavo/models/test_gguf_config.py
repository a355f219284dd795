"""GGUF metadata that no tiny model covers: sizes llama.cpp tells models by, list values, and what is refused."""

import math

import gguf
import numpy as np
import pytest

from octavo.errors import ModelError
from octavo.models.families.reading import spec_from_config
from octavo.models.gguf_config import config_from_gguf
from octavo.models.spec import FactorScaling, LinearScaling, Rope, YarnScaling

BASE = {
    "embedding_length": 64, "block_count": 2, "attention.head_count": 4, "feed_forward_length": 96,
    "context_length": 512, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


@pytest.fixture
def spec(tmp_path):
    """`spec(architecture, metadata, tensors)`: the spec of a file with that metadata beside `BASE`."""

    def read(architecture="llama", changes=(), tensors=("token_embd.weight",)):
        writer = gguf.GGUFWriter(tmp_path / "meta.gguf", architecture)
        for key, value in (BASE | dict(changes)).items():
            name = key if key.startswith("tokenizer") else f"{architecture}.{key}"
            if value is not None:
                add(writer, name, value)
        for name in tensors:
            writer.add_tensor(name, np.ones((10, 64) if name == "token_embd.weight" else 8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return spec_from_config(config_from_gguf(tmp_path / "meta.gguf"))

    return read


def add(writer, name, value):
    kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    kinds[type(value)](name, value)


def test_least_metadata(spec):
    got = spec()
    assert got.rope == Rope(10_000.0, 16)
    assert (got.vocab_size, got.num_kv_heads, got.head_dim) == (10, 4, 16)
    assert got.tied_embeddings
    assert not spec(tensors=("token_embd.weight", "output.weight")).tied_embeddings


def test_every_end_token_counts_once(spec):
    tokens = {"tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 3}
    assert spec("llama", tokens).eos_token_ids == (3, 5)


def test_one_value_per_layer(spec):
    assert spec("llama", {"attention.head_count_kv": [2, 2]}).num_kv_heads == 2
    with pytest.raises(ModelError, match=r"llama\.attention\.head_count_kv differs"):
        spec("llama", {"attention.head_count_kv": [2, 4]})


def test_biases_are_told_by_their_tensors(spec):
    got = spec("llama", tensors=("token_embd.weight", "blk.0.attn_q.bias"))
    assert (got.qkv_bias, got.out_bias, got.mlp_bias) == (True, False, False)


@pytest.mark.parametrize(
    ("architecture", "layers", "width"),
    [("gemma2", 26, 24), ("gemma2", 46, 16), ("gemma3", 34, 24), ("gemma3", 62, 16)],
)
def test_largest_gemmas_scale_attention_by_their_share_of_the_hidden_size(spec, architecture, layers, width):
    heads = {"attention.key_length": 24, "attention.value_length": 24, "attention.sliding_window": 8}
    got = spec(architecture, heads | {"block_count": layers})
    assert got.attention_scale == width**-0.5


def test_gemma3_windows_repeat_every_six_layers(spec):
    got = spec("gemma3", {"block_count": 12, "attention.sliding_window": 8, "rope.freq_base": 1e6})
    assert got.windows == ((8,) * 5 + (None,)) * 2
    assert got.local_rope == Rope(10_000.0, 16)
    got = spec("gemma3", {"block_count": 4, "attention.sliding_window": 8, "attention.sliding_window_pattern": 2})
    assert got.windows == (8, None, 8, None)


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({"rope.scale_linear": 4.0}, LinearScaling(4.0)),
        ({"rope.scaling.factor": 4.0}, LinearScaling(4.0)),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, LinearScaling(4.0)),
        ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, LinearScaling(2.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "none", "rope.scale_linear": 4.0}, None),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0}, None),
        ({"rope.scale_linear": 1.0}, None),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.0},
         YarnScaling(2.0, 512, 32, 1, True, 0.1 * math.log(2) + 1)),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 0.5},
         YarnScaling(2.0, 512, 32, 1, True, 0.5 * (1 + 0.1 * math.log(2)))),
        ({"rope.scaling.type": "yarn", "rope.scale_linear": 2.0, "rope.scaling.yarn_ext_factor": 1.0},
         YarnScaling(2.0, 512, 32, 1, True, 0.1 * math.log(2) + 1)),
    ],
)  # fmt: skip
def test_rope_scaling_by_old_and_new_keys(spec, changes, scaling):
    got = spec("llama", changes)
    assert got.rope.scaling == scaling
    if not isinstance(scaling, YarnScaling):
        assert got.max_position_embeddings == 512  # of a file, that after scaling


def test_divisors_of_frequencies_are_scaled_too(spec):
    tensors = ("token_embd.weight", "rope_freqs.weight")
    assert spec("llama", {"rope.scale_linear": 4.0}, tensors).rope.scaling == FactorScaling((4.0,) * 8)
    assert spec("llama", {}, tensors).rope.scaling == FactorScaling((1.0,) * 8)
    with pytest.raises(ModelError, match=r"rope_freqs\.weight does not hold 4 positive divisors"):
        spec("llama", {"attention.key_length": 8, "attention.value_length": 8}, tensors)


def test_defaults_of_llama_cpp(spec):
    assert spec("gemma2", {"block_count": 4}).windows == (4096, None, 4096, None)
    assert spec("llama", {"attention.key_length": 16}).head_dim == 16  # and values of as many
    with pytest.raises(ModelError, match="length 8 and values of length 16"):
        spec("llama", {"attention.key_length": 8})


def test_a_vocabulary_beyond_the_embedding_is_named(spec):
    with pytest.raises(ModelError, match=r"11 tokens, and token_embd\.weight 10 rows"):
        spec("llama", {"tokenizer.ggml.tokens": [f"t{i}" for i in range(11)]})


def test_yarn(spec):
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 256}
    scaling = spec("qwen2", yarn).rope.scaling
    assert scaling == YarnScaling(4.0, 256, 32, 1, True, 0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("architecture", "changes", "tensors", "named"),
    [
        ("mamba", {}, (), r"'mamba'.*gemma3, .*llama"),
        ("llama", {"context_length": None}, (), r"lacks llama\.context_length"),
        ("gemma3", {}, (), r"lacks gemma3\.attention\.sliding_window"),
        ("qwen2", {"expert_count": 8}, (), "num_experts 8"),
        ("llama", {"attention.key_length": 16, "attention.value_length": 8}, (), "length 16 and values of length 8"),
        ("llama", {"rope.dimension_count": 8}, (), "8 of 16 dimensions"),
        ("llama", {"rope.scaling.type": "longrope"}, (), "longrope"),
        ("llama", {}, ("rope_factors_long.weight",), "rope_factors_short"),
        ("qwen2", {"rope.scaling.type": "yarn", "rope.scaling.yarn_log_multiplier": 0.1}, (), "yarn_log_multiplier"),
    ],
)
def test_what_is_not_supported_is_named(spec, architecture, changes, tensors, named):
    with pytest.raises(ModelError, match=named):
        spec(architecture, changes, ("token_embd.weight", *tensors))


def test_a_file_without_a_model(spec):
    with pytest.raises(ModelError, match=r"token_embd\.weight"):
        spec(tensors=())
