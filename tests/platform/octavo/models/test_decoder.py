"""Every family against transformers: ragged steps over the paged cache, logits and greedy continuations."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from octavo.errors import ConfigError
from octavo.models.load import load_model
from octavo.models.step_context import StepContext
from octavo.models.weights.layout import Experts
from octavo.source import resolve_source


def load(folder, **options):
    return load_model(resolve_source(str(folder)), **options)


def test_logits_and_greedy_tokens_equal_transformers(tiny_model, tiny_name, paged_run, reference, sequences):
    assert_equals_transformers(tiny_model(tiny_name), paged_run, reference, sequences)


@pytest.mark.parametrize("name", ["mpt", "qwen3_moe_dense"])
def test_families_of_the_torch_runner_equal_transformers(tiny_model, paged_run, reference, sequences, name):
    """Layer norms and ALiBi; a layer without experts."""
    assert_equals_transformers(tiny_model(name), paged_run, reference, sequences)


def assert_equals_transformers(folder, paged_run, reference, sequences):
    decoder, expected = load(folder), reference(folder)
    ours = paged_run(decoder, len(sequences), 80).all_logits(sequences)
    for tokens, logits in zip(sequences, ours, strict=True):
        theirs = expected.logits(tokens)
        assert theirs.std() > 0.5  # logits so small that anything would agree prove nothing
        torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=0)
    prompts = [tokens[:20] for tokens in sequences]
    greedy = paged_run(decoder, len(prompts), 40).greedy(prompts, 12)
    assert greedy == [expected.greedy(prompt, 12) for prompt in prompts]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_what_the_cpu_does(tiny_model, tiny_name, paged_run, sequences):
    on_cpu, on_gpu = (load(tiny_model(tiny_name), device=device) for device in ("cpu", "cuda"))
    runs = (paged_run(decoder, len(sequences), 80).all_logits(sequences) for decoder in (on_cpu, on_gpu))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=0)  # Triton may multiply float32 in TF32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close_to_float32(tiny_model, paged_run, sequences, dtype):
    folder = tiny_model("gemma3")
    full, half = load(folder), load(folder, dtype=dtype)
    assert half.weights.embedding.dtype == half.dtype == getattr(torch, dtype)
    assert half.weights.final_norm.weight.dtype == torch.float32
    for a, b in zip(
        paged_run(full, len(sequences), 80).all_logits(sequences),
        paged_run(half, len(sequences), 80).all_logits(sequences),
        strict=True,
    ):
        assert b.dtype == torch.float32
        assert ((a - b).norm() / a.norm()).item() < (0.1 if dtype == "bfloat16" else 0.02)


def test_a_windowed_layer_does_not_see_past_its_window(tiny_model, paged_run):
    """Mistral's three layers of window 12 pass nothing on from more than 3 * 11 tokens back."""
    decoder = load(tiny_model("mistral"))
    tokens = np.random.default_rng(2).integers(0, 256, 50).tolist()
    changed = [(tokens[0] + 1) % 256, *tokens[1:]]
    a, b = (paged_run(decoder, 1, 60).all_logits([ids])[0] for ids in (tokens, changed))
    assert not torch.allclose(a[33], b[33], atol=1e-6)
    torch.testing.assert_close(a[34:], b[34:], atol=1e-6, rtol=0)


def test_rotary_tables_end_at_max_model_len(tiny_model):
    decoder = load(tiny_model("gemma3"), max_model_len=100)
    assert {tuple(table.shape) for table in decoder._rope_tables} == {(100, 24)}
    assert len({table.data_ptr() for table in decoder._rope_tables}) == 2  # one per base, not one per layer


@pytest.mark.parametrize(
    ("name", "quantization"), [("llama_biases", None), ("llama_biases", "int8"), ("qwen2_moe", None)]
)
def test_one_order_of_sums_changes_rounding_alone(tiny_model, paged_run, sequences, name, quantization):
    plain, ours = (load(tiny_model(name), quantization=quantization) for _ in range(2))
    ours.keep_one_order()
    expected, actual = (paged_run(decoder, 1, 80).step({0: sequences[0][:20]})[0] for decoder in (plain, ours))
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


def test_one_order_of_sums_is_refused_where_there_is_none(tiny_model):
    decoder = load(tiny_model("llama2"), quantization="bitsandbytes-nf4")
    with pytest.raises(ConfigError, match="not for bitsandbytes"):
        decoder.keep_one_order()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AdaptedContext(StepContext):
    adapted: torch.Tensor  # [T, 1] 1 for the tokens of sequences with the adapter, else 0


class AdaptedLinear:
    """A matrix W with a low-rank change B A for some tokens."""

    def __init__(self, base):
        rows, columns = base.weight.shape
        self.base, self.a, self.b = base, torch.randn(2, columns) / columns**0.5, torch.randn(rows, 2) / 4

    def __call__(self, x, context):
        return self.base(x, context) + context.adapted * (x @ self.a.T @ self.b.T)


class AdaptedExperts(Experts):
    """Experts whose outputs count twice for some tokens."""

    def __call__(self, x, shares, chosen, context):
        return super().__call__(x, shares, chosen, context) * (1 + context.adapted)


@pytest.mark.parametrize("name", ["llama_biases", "mpt", "qwen2_moe"])
def test_every_matrix_of_a_layer_can_tell_which_tokens_it_multiplies(tiny_model, paged_run, sequences, name):
    """Sequences with and without an adapter in one batch, by nothing but other matrices and a context that knows more:
    each gets what a decoder with its weights alone gives."""

    class Run(paged_run):
        def context(self, layout, rows, lens):
            adapted = torch.tensor(rows).repeat_interleave(torch.tensor(lens)) % 2
            return AdaptedContext(layout, self.kv, adapted=adapted[:, None])

    plain, mixed, merged = (load(tiny_model(name)) for _ in range(3))
    torch.manual_seed(0)
    for layer, twin in zip(mixed.weights.layers, merged.weights.layers, strict=True):
        for one, other in [(layer, twin), (layer.experts, twin.experts)]:
            for part in ("qkv", "out", "gate_up", "down", "router", "shared_gate"):
                if hasattr(getattr(one, part, None), "weight"):
                    setattr(one, part, adapted := AdaptedLinear(getattr(one, part)))
                    getattr(other, part).weight += adapted.b @ adapted.a
        if layer.experts is not None:
            old = layer.experts
            layer.experts = AdaptedExperts(old.router, old.gate_up, old.down, old.shared_gate, old.count)
            twin.experts.down *= 2
    ours = Run(mixed, len(sequences), 80).all_logits(sequences)
    without, within = (paged_run(decoder, len(sequences), 80).all_logits(sequences) for decoder in (plain, merged))
    for i, logits in enumerate(ours):
        torch.testing.assert_close(logits, (within if i % 2 else without)[i], atol=1e-4, rtol=1e-4)
        assert (within[i] - without[i]).abs().max() > 0.1
