"""Specs of encoders and of classifiers: what configs of either generation say, and what is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import ModelError
from octavo.models.encoder import Texts
from octavo.models.encoder_spec import DenseSpec, EncoderSpec, HeadSpec
from octavo.models.families.reading import spec_from_config
from octavo.models.load import load_encoder
from octavo.models.packing import pack
from octavo.models.parallel import share_of
from octavo.models.source_spec import read_spec
from octavo.models.spec import Rope
from octavo.source import resolve_source

BERT = {"model_type": "bert"}


def test_bert_and_roberta():
    spec = spec_from_config(BERT)
    assert spec.encoder == EncoderSpec(positions=512, token_types=2)
    assert (spec.vocab_size, spec.hidden_size, spec.head_dim, spec.generates) == (30_522, 768, 64, False)
    long = spec_from_config({"model_type": "xlm-roberta", "max_position_embeddings": 8194, "type_vocab_size": 1})
    assert long.encoder == EncoderSpec(positions=8194, position_offset=2, token_types=1)
    assert long.max_position_embeddings == 8192


def test_modernbert_of_both_generations():
    older = {"global_rope_theta": 5e4, "local_rope_theta": 2e3, "global_attn_every_n_layers": 2, "local_attention": 64}
    newer = {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e3},
        },
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "local_attention": 64,
    }
    common = {"model_type": "modernbert", "num_hidden_layers": 4, "hidden_activation": "gelu", "norm_eps": 1e-4}
    spec = spec_from_config(common | older)
    assert spec == spec_from_config(common | newer)
    assert spec.windows == (None, 33, None, 33)
    assert (spec.layer_rope(0), spec.layer_rope(1)) == (Rope(5e4, 64), Rope(2e3, 64))
    assert spec.encoder == EncoderSpec(norm_first=True, first_norm=False)
    assert (spec.norm_eps, spec.gated, spec.norm_bias, spec.qkv_bias) == (1e-4, True, False, False)


def test_nomics_own_config_means_what_transformers_one_does():
    """`configuration_hf_nomic_bert.py` of nomic-embed-text-v1.5, in GPT-2's words."""
    own = {
        "model_type": "nomic_bert", "n_embd": 96, "n_head": 4, "n_inner": 128, "n_layer": 2, "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "activation_function": "swiglu", "prenorm": False,
        "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 2048, "use_rms_norm": False, "type_vocab_size": 2, "vocab_size": 30_528,
        "rotary_scaling_factor": None, "n_positions": 8192,
    }  # fmt: skip
    theirs = {
        "model_type": "nomic_bert", "hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128,
        "num_hidden_layers": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }  # fmt: skip
    assert spec_from_config(own) == spec_from_config(theirs)


def test_nomics_names_of_transformers_5_are_read(tiny_encoder, tmp_path):
    """transformers writes the names of nomic's own code, which all other tests read."""
    folder = tiny_encoder("nomic_bert")
    newer = {"emb_ln": "embeddings.LayerNorm", "encoder.layers": "layers", "attn.out_proj": "self_attn.o_proj",
             "fc11": "up_proj", "fc12": "gate_proj", "fc2": "down_proj", "norm1": "post_attention_layernorm",
             "norm2": "post_mlp_layernorm"}  # fmt: skip
    tensors = {}
    for name, values in load_file(folder / "model.safetensors").items():
        for own, theirs in newer.items():
            name = name.replace(own, theirs)
        tensors[name] = values
    for i in range(3):
        parts = zip("qkv", tensors.pop(f"layers.{i}.attn.Wqkv.weight").chunk(3), strict=True)
        tensors |= {f"layers.{i}.self_attn.{part}_proj.weight": values.clone() for part, values in parts}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tokens, texts = torch.arange(5, 45), Texts([0, 40], [None])
    a, b = (load_encoder(resolve_source(str(place))).forward(tokens, texts) for place in (folder, tmp_path))
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert", "nomic_bert"])
def test_packed_parts_are_those_that_the_spec_lists(tiny_encoder, name):
    source = resolve_source(str(tiny_encoder(name)))
    spec = read_spec(source)
    packed = dict(pack(source, share_of(spec), half=False, rounding=None, table_positions=10, progress=False))
    top = {part: kind for layer, part, kind in packed if layer is None}
    assert (
        top.keys()
        == {
            "bert": {"embedding", "position_embedding", "type_embedding", "embedding_norm"},
            "mpnet": {"embedding", "position_embedding", "embedding_norm", "relative_bias"},
            "modernbert": {"embedding", "embedding_norm", "final_norm"},
            "nomic_bert": {"embedding", "type_embedding", "embedding_norm"},
        }[name]
    )
    matrices = {part for layer, part, kind in packed if layer == 1 and kind == "weight" and "norm" not in part}
    assert matrices == {"q", "k", "v", "out", "up", "down"} | ({"gate"} if spec.gated else set())
    assert ((0, "attention_norm", "weight") in packed) == (name != "modernbert")
    assert ((1, "mlp_norm", "bias") in packed) == spec.norm_bias
    assert packed[None, "embedding_norm", "weight"].dtype == "float32"


def test_older_names_of_norms_are_read(tiny_encoder, tmp_path):
    folder = tiny_encoder("bert")
    tensors = load_file(folder / "model.safetensors")
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): values
        for name, values in tensors.items()
    }
    assert older.keys() != tensors.keys()
    save_file({f"bert.{name}": values for name, values in older.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    norm = load_encoder(resolve_source(str(tmp_path))).weights.layers[1].mlp_norm
    assert torch.equal(norm.weight, tensors["encoder.layer.1.output.LayerNorm.weight"])


def test_sizes_are_those_of_the_weights(tiny_encoder, tmp_path):
    folder = tiny_encoder("roberta")
    config = json.loads((folder / "config.json").read_text())
    wrong = {"vocab_size": 7, "intermediate_size": 5, "max_position_embeddings": 9, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config | wrong))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert read_spec(resolve_source(str(tmp_path))) == read_spec(resolve_source(str(folder)))


def test_heads_of_classifiers():
    classes = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    pooler, last = DenseSpec(768, 768, "pooler.dense", activation="tanh"), DenseSpec(3, 768, "classifier")
    assert spec_from_config(BERT | classes).head == HeadSpec((pooler, last))
    qwen = {"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}
    spec = spec_from_config(qwen | {"hidden_size": 64})
    assert spec.head == HeadSpec((DenseSpec(1, 64, "score", bias=False),))
    assert (spec.generates, spec.tied_embeddings, spec.encoder) == (False, True, None)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (BERT | {"is_decoder": True}, "is_decoder True is not supported"),
        (BERT | {"add_cross_attention": True}, "add_cross_attention True"),
        (BERT | {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        (BERT | {"hidden_act": "mish"}, "activation 'mish'"),
        (BERT | {"num_attention_heads": 7}, "768 values cannot be divided among 7"),
        (BERT | {"type_vocab_size": -1}, "type_vocab_size is -1, which no model has"),
        (BERT | {"type_vocab_size": 1 << 40}, "type_vocab_size is 1099511627776, which no model has"),
        (BERT | {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        (BERT | {"num_hidden_layers": 10**15}, "num_hidden_layers is 1000000000000000"),
        (BERT | {"embedding_size": 128}, "embedding_size"),
        (BERT | {"quantization_config": {"quant_method": "gptq"}}, "stored quantised"),
        ({"model_type": "roberta", "max_position_embeddings": 2}, "max_position_embeddings is 0"),
        ({"model_type": "mpnet", "relative_attention_num_buckets": 64}, "num_buckets 64"),
        ({"model_type": "nomic_bert", "prenorm": True}, "prenorm True"),
        ({"model_type": "modernbert", "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "'yarn'"),
        ({"model_type": "modernbert", "layer_types": ["chunked_attention"] * 22}, "chunked_attention"),
        ({"model_type": "modernbert", "max_position_embeddings": 10**9}, "1000000000, which no encoder has"),
        ({"model_type": "electra"}, "'electra' are not supported; supported types are .*bert, .*camembert"),
    ],
)
def test_what_is_not_supported_is_named(config, named):
    with pytest.raises(ModelError, match=named):
        spec_from_config(config)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ((), "head's sizes are"),
        ((DenseSpec(0, 3, "a"),), "whole numbers of 1 to"),
        ((DenseSpec(1 << 40, 3, "a"),), "whole numbers of 1 to"),
        ((DenseSpec(2, 3, "a"), DenseSpec(1, 3, "b")), "2 rows, the next one 3 columns"),
    ],
)
def test_heads_whose_layers_do_not_fit_are_refused(layers, named):
    with pytest.raises(ModelError, match=named):
        HeadSpec(layers)
