"""What does not come near its reference is not served, and the message says where it differs."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelError
from octavo.evaluation.evaluate import Settings
from octavo.evaluation.gate import require
from octavo.execution.local import load_local
from octavo.source import resolve_source
from octavo_kernels.native.library import library, use

SETTINGS = Settings(tokens=300, window=100, max_kl=0.05)


@pytest.fixture(params=["native", "torch"])
def check(request, text):
    """`check(model, reference)`: load and require, on one of the runners."""
    if request.param == "native" and library() is None:
        pytest.skip("no C++ compiler")

    def call(model, reference=None, settings=SETTINGS, **engine):
        config = EngineConfig(**{"kv_cache_bytes": 2**20, "threads": 1} | engine)
        with use(library() if request.param == "native" else None):
            executor = load_local(resolve_source(str(model)), config)
            try:
                return require(executor, str(model), config, settings, text, reference and str(reference))
            finally:
                executor.close()

    return call


@pytest.fixture
def int8(tiny_model, tmp_path):
    """`int8(spoilt)` -> a checkpoint of int8 codes with a scale per row; that of one tensor is four times too large."""
    config = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"all": {"weights": {"type": "int", "num_bits": 8, "strategy": "channel"}}},
    }

    def make(spoilt):
        folder = shutil.copytree(tiny_model("llama3"), tmp_path / "int8")
        tensors = load_file(folder / "model.safetensors")
        for name in [name for name in tensors if "_proj.weight" in name]:
            scale = tensors[name].abs().amax(1, keepdim=True) / 127
            tensors[name] = (tensors[name] / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale * (4 if spoilt in name else 1)
        save_file(tensors, folder / "model.safetensors")
        settings = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return make


def test_a_good_model_passes(check, int8, tiny_model):
    folder = int8("none")
    found = check(folder, tiny_model("llama3"))
    assert found.passed
    assert 1e-6 < found.divergence.mean_kl < 0.05
    assert check(folder).divergence.mean_kl < 1e-6  # of its own weights, but for activations of 16 bits


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [("layers.1.mlp.down_proj", 1), ("layers.0.self_attn.v_proj", 0), ("layers.2.self_attn.o_proj", 2)],
)
def test_a_bad_scale_is_refused_and_its_layer_named(check, int8, tiny_model, tensor, layer):
    with pytest.raises(ModelError, match=rf"over the bound of 0.05; layer {layer} differs most: relative error"):
        check(int8(tensor), tiny_model("llama3"))


def test_weights_rounded_on_load_are_measured_too(check, tiny_model):
    assert check(tiny_model("llama3"), quantization="int8").passed
    with pytest.raises(ModelError, match="over the bound of 1e-06"):
        check(tiny_model("llama3"), quantization="int8", settings=Settings(tokens=300, window=100, max_kl=1e-6))


def test_a_small_cache_is_no_excuse(check, tiny_model):
    with pytest.raises(ConfigError, match="the KV cache holds 32 tokens"):
        check(tiny_model("llama3"), kv_cache_bytes=2 * 3 * 2 * 16 * 2 * 16 * 4)


def test_what_cannot_be_measured_is_refused(text):
    with pytest.raises(ConfigError, match="set tensor_parallel_size to 1"):
        require(SimpleNamespace(local=None), "m", EngineConfig(), SETTINGS, text, None)
