"""Which part is wrong, on both runners."""

from __future__ import annotations

import pytest
import torch

from octavo.config import EngineConfig
from octavo.evaluation.divergence import window_logits
from octavo.evaluation.layers import layer_errors, worst
from octavo.execution.local import load_local
from octavo.source import resolve_source
from octavo_kernels.native.library import library, use

TOKENS = [(7 * i * i + 3 * i) % 256 for i in range(70)]


@pytest.fixture(params=["native", "torch"])
def load(request):
    """`load(folder)` -> an executor on one of the runners."""
    if request.param == "native" and library() is None:
        pytest.skip("no C++ compiler")

    def make(folder, **settings):
        with use(library() if request.param == "native" else None):
            return load_local(resolve_source(str(folder)), EngineConfig(kv_cache_bytes=2**22, **settings))

    return make


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama3", "qwen2_windows"])
def test_the_parts_make_the_whole(load, tiny_model, name):
    executor = load(tiny_model(name))
    hidden = executor.parts.embed(torch.tensor(TOKENS))
    for index in range(executor.spec.num_layers):
        hidden = executor.parts.layer(index, hidden)
    whole = torch.cat([*window_logits(executor, TOKENS)])
    torch.testing.assert_close(executor.parts.head(hidden)[:-1], whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("layers.1.self_attn.q_proj", "layer 1"),
        ("layers.0.self_attn.v_proj", "layer 0"),
        ("layers.2.mlp.down_proj", "layer 2"),
        ("embed_tokens", "the embedding"),
        ("lm_head", "the head"),
    ],
)
def test_a_wrong_scale_is_found(load, tiny_model, scaled, tensor, part):
    model, reference = load(scaled(tiny_model("llama3"), tensor, 1.2)), load(tiny_model("llama3"))
    errors = layer_errors(model.parts, reference.parts, TOKENS)
    assert [name for name, error in errors.items() if error > 0.01] == [part]
    assert worst(errors).startswith(f"{part} differs most: ")


def test_rounding_is_spread_evenly(load, tiny_model):
    model, reference = load(tiny_model("gemma3"), dtype="bfloat16"), load(tiny_model("gemma3"))
    errors = layer_errors(model.parts, reference.parts, TOKENS)
    assert 1e-4 < min(errors.values()) < max(errors.values()) < 0.03


def test_nan_differs_most():
    assert worst({"layer 0": 0.2, "layer 1": float("inf"), "the head": 0.1}).startswith("layer 1")
