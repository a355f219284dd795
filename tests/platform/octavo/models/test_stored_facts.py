"""Where config.json and the weights disagree, the weights are right."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from octavo.errors import ModelError
from octavo.models.load import load_model
from octavo.models.parallel import share_of
from octavo.models.weights.layout import slots
from octavo.source import resolve_source


def load(folder):
    return load_model(resolve_source(str(folder)))


def assert_equal_weights(a, b):
    for left, right in zip(slots(a.weights, share_of(a.spec)), slots(b.weights, share_of(b.spec)), strict=True):
        torch.testing.assert_close(left.target, right.target, atol=0, rtol=0)


def config_of(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return folder


WRONG_SIZES = {
    "vocabulary": {"vocab_size": 280},
    "layers": {"num_hidden_layers": 2},
    "mlp": {"intermediate_size": 100},
    "head size": {"head_dim": 8},
    "key-value heads": {"num_key_value_heads": 4},
    "no key-value heads": {"num_key_value_heads": "absent"},
    "no head size": {"head_dim": None},
    "several": {"vocab_size": 5, "intermediate_size": 100, "num_key_value_heads": 4},
}


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3"])
@pytest.mark.parametrize("changes", WRONG_SIZES.values(), ids=WRONG_SIZES)
def test_sizes_are_those_of_the_weights(tiny_model, tmp_path, name, changes):
    expected = load(tiny_model(name))
    if "num_hidden_layers" in changes and expected.spec.local_rope:
        pytest.skip("layer_types name every layer")
    folder = config_of(shutil.copytree(tiny_model(name), tmp_path / "model"), **changes)
    decoder = load(folder)
    assert decoder.spec == expected.spec
    assert_equal_weights(decoder, expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 9}, r"says 9 layers, and the checkpoint holds 3"),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7},
            r"says 7 query heads .* the checkpoint's matrices have 64 rows",
        ),
    ],
)
def test_sizes_that_contradict_the_weights_are_named_with_them(tiny_model, tmp_path, changes, named):
    folder = config_of(shutil.copytree(tiny_model("llama3"), tmp_path / "model"), **changes)
    with pytest.raises(ModelError, match=named):
        load(folder)


def test_biases_are_those_of_the_weights(tiny_model, tmp_path, caplog):
    expected = load(tiny_model("llama_biases"))
    folder = shutil.copytree(tiny_model("llama_biases"), tmp_path / "model")
    decoder = load(config_of(folder, attention_bias=False, mlp_bias=False))
    assert decoder.spec == expected.spec
    assert_equal_weights(decoder, expected)
    assert "config.json says qkv_bias False, and the weights True" in caplog.text


def test_biases_that_are_not_there_are_none(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama2"), tmp_path / "model")
    decoder = load(config_of(folder, attention_bias=True, mlp_bias=True))
    assert decoder.spec == load(tiny_model("llama2")).spec


def test_norms_of_queries_and_keys_are_those_of_the_weights(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("qwen3"), tmp_path / "model")
    expected = load(folder)
    decoder = load(config_of(folder, model_type="llama"))
    assert decoder.spec.qk_norm
    assert_equal_weights(decoder, expected)
