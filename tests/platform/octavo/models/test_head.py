"""Heads beside torch's layers; `test_encoder.py` has those of real classifiers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import ModelError
from octavo.models.encoder_spec import DenseSpec
from octavo.models.head import Dense, Head, read_head
from octavo.models.load import load_model
from octavo.models.source_spec import read_spec
from octavo.source import resolve_source

ACTIVATIONS = {
    "identity": torch.nn.Identity(), "tanh": torch.nn.Tanh(), "relu": torch.nn.ReLU(), "gelu": torch.nn.GELU(),
    "gelu_tanh": torch.nn.GELU(approximate="tanh"), "silu": torch.nn.SiLU(), "sigmoid": torch.nn.Sigmoid(),
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_are_torchs(activation):
    linear, norm = torch.nn.Linear(40, 30), torch.nn.LayerNorm(30, eps=1e-5)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    arrays = [x.detach().numpy() for x in (linear.weight, linear.bias, norm.weight, norm.bias)]
    head = Head([Dense(DenseSpec(30, 40, "a", activation=activation, norm="n"), *arrays)], 1e-5)
    x = 3 * torch.randn(7, 40)
    found = head(x.numpy())
    assert found.dtype == np.float32
    expected = norm(ACTIVATIONS[activation](linear(x))).detach()
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)
    assert np.array_equal(found[3:4], head(x[3:4].numpy()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_types(tiny_encoder, tmp_path, dtype):
    folder = tiny_encoder("bert", classes=2)
    stored = {name: values.to(dtype) for name, values in load_file(folder / "model.safetensors").items()}
    save_file(stored, tmp_path / "model.safetensors")
    source, x = resolve_source(str(folder)), np.ones((1, 64), np.float32)
    full = read_head(source, read_spec(source))(x)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    other = resolve_source(str(tmp_path))
    np.testing.assert_allclose(read_head(other, read_spec(other))(x), full, atol=0.05)


def test_random_heads_and_models_without_one(tiny_encoder):
    source = resolve_source(str(tiny_encoder("bert", classes=2)))
    spec = read_spec(source)
    head = read_head(source, spec, dummy=True)
    assert head is not None
    assert head(np.ones((2, 64), np.float32)).shape == (2, 2)
    assert read_head(source, dataclasses.replace(spec, head=None)) is None


def test_what_is_missing_or_of_another_shape_is_named(tiny_encoder, tmp_path):
    folder = tiny_encoder("bert", classes=2)
    source = resolve_source(str(folder))
    spec = read_spec(source)
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for change, named in (
        ({"bert.pooler.dense.weight": torch.zeros(3, 64)}, r"pooler.dense.weight is \[3, 64\] instead of \[64, 64\]"),
        ({"bert.pooler.dense.weight": torch.zeros(64, 64, dtype=torch.int8)}, "stored as I8"),
        ({"classifier.bias": None}, "lacks classifier.bias"),
    ):
        kept = {name: values for name, values in (tensors | change).items() if values is not None}
        save_file(kept, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=named):
            read_head(resolve_source(str(tmp_path)), spec)


def save_decoder(folder, kind, **config):
    import transformers

    common = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
              "tie_word_embeddings": False}  # fmt: skip
    model = getattr(transformers, kind)(transformers.Qwen3Config(**common | config)).eval()
    model.save_pretrained(folder)
    return model, resolve_source(str(folder))


def test_a_decoders_classes_are_those_of_transformers(tmp_path, paged_run):
    model, source = save_decoder(tmp_path, "Qwen3ForSequenceClassification", num_labels=3)
    spec = read_spec(source)
    assert (spec.generates, spec.tied_embeddings) == (False, True)
    head, decoder = read_head(source, spec), load_model(source)
    decoder.logits = lambda hidden: hidden.float()  # there are none: what `paged_run` collects are the states
    tokens = list(range(5, 40))
    (states,) = paged_run(decoder, 1, 64).all_logits([tokens])
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits
    assert head is not None
    torch.testing.assert_close(torch.from_numpy(head(states[-1:].numpy())), expected, atol=1e-5, rtol=0)


def test_a_decoder_stored_without_an_output_matrix_only_embeds(tmp_path):
    _, source = save_decoder(tmp_path, "Qwen3Model")
    spec = read_spec(source)
    assert (spec.generates, spec.tied_embeddings, spec.head) == (False, True, None)
    assert load_model(source).weights.lm_head.weight.shape == (300, 64)
