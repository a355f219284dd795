"""sentence-transformers' list of modules, and dense layers among them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from octavo.errors import ModelError
from octavo.models.encoder_spec import DenseSpec
from octavo.models.head import read_head
from octavo.models.sentence_modules import dense_head, sentence_modules
from octavo.models.source_spec import read_spec
from octavo.source import resolve_source


def write_modules(folder, *kinds, **configs):
    """`modules.json` as sentence-transformers writes it; `configs` are those of the folders, by kind."""
    folder.joinpath("config.json").touch()
    entries = []
    for i, kind in enumerate(kinds):
        path = "" if i == 0 else f"{i}_{kind}"
        entries.append({"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"})
        if path:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(configs.get(kind, {})))
    (folder / "modules.json").write_text(json.dumps(entries))
    return resolve_source(str(folder))


def test_dense_modules_are_the_head(tiny_encoder, tmp_path):
    for file in tiny_encoder("bert").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text((tiny_encoder("bert") / "config.json").read_text())
    dense = {"in_features": 64, "out_features": 24, "activation_function": "torch.nn.modules.activation.Tanh"}
    source = write_modules(tmp_path, "Transformer", "Pooling", "Dense", "Normalize", Dense=dense)
    layer = torch.nn.Linear(64, 24)
    save_file({f"linear.{k}": v for k, v in layer.state_dict().items()}, tmp_path / "2_Dense" / "model.safetensors")
    spec = read_spec(source)
    assert spec.head is not None
    assert spec.head.layers == (DenseSpec(24, 64, "2_Dense/linear", activation="tanh"),)
    head, x = read_head(source, spec), np.random.default_rng(0).standard_normal((3, 64), np.float32)
    assert head is not None
    expected = torch.tanh(layer(torch.from_numpy(x))).detach()
    torch.testing.assert_close(torch.from_numpy(head(x)), expected, atol=1e-6, rtol=0)


def test_a_checkpoint_without_modules_has_none(tiny_encoder):
    assert sentence_modules(resolve_source(str(tiny_encoder("bert")))) == []


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        (("Transformer", "Pooling", "CNN"), "models.CNN, which is not supported"),
        (("Transformer", "Normalize"), "asks for Transformer, Normalize; supported are"),
        (("Transformer", "Pooling", "Normalize", "Dense"), "asks for Transformer, Pooling, Normalize, Dense"),
        (("StaticEmbedding", "Normalize"), "StaticEmbedding"),
    ],
)
def test_other_modules_are_named(tmp_path, kinds, named):
    with pytest.raises(ModelError, match=named):
        sentence_modules(write_modules(tmp_path, *kinds))


@pytest.mark.parametrize("kinds", [("Transformer",), ("Transformer", "LogitScore")])
def test_cross_encoders_are_models_like_others(tmp_path, kinds):
    assert sentence_modules(write_modules(tmp_path, *kinds)) == []


@pytest.mark.parametrize("more", [{"use_residual": True}, {"module_output_name": "scores"}])
def test_other_dense_layers_are_refused(tmp_path, more):
    dense = {"in_features": 4, "out_features": 4, "activation_function": "torch.nn.modules.linear.Identity"}
    modules = sentence_modules(write_modules(tmp_path, "Transformer", "Pooling", "Dense", Dense=dense | more))
    with pytest.raises(ModelError, match="2_Dense is no layer after pooling"):
        dense_head(modules)


@pytest.mark.parametrize("path", ["../other", "..", "/etc", "a/b"])
def test_modules_are_in_the_checkpoint(tmp_path, path):
    source = write_modules(tmp_path, "Transformer", "Pooling")
    entries = json.loads((tmp_path / "modules.json").read_text())
    entries[1]["path"] = path
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(ModelError, match="no folder of the checkpoint"):
        sentence_modules(source)


def test_an_unknown_activation_is_named(tmp_path):
    dense = {"in_features": 4, "out_features": 2, "activation_function": "torch.nn.modules.activation.Mish"}
    source = write_modules(tmp_path, "Transformer", "Pooling", "Dense", Dense=dense)
    with pytest.raises(ModelError, match="2_Dense has the activation 'Mish'"):
        dense_head(sentence_modules(source))
