"""Quantisation settings, and weights that are rounded while they are loaded."""

from __future__ import annotations

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.evaluation.divergence import window_logits
from octavo.execution.local import load_local
from octavo.models.quantization import Rounding, check_setting, parse_rounding
from octavo.source import resolve_source
from octavo_kernels.native.library import library, use

TOKENS = [(7 * i * i + 3 * i) % 256 for i in range(70)]


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        ("int8", Rounding("int", 8, None)),
        ("int8-g64", Rounding("int", 8, 64)),
        ("int4", Rounding("int", 4, 32, symmetric=False)),
        ("int4-g128", Rounding("int", 4, 128, symmetric=False)),
        ("int4-g64-sym", Rounding("int", 4, 64, symmetric=True)),
        ("fp8", Rounding("fp8")),
        ("bitsandbytes-nf4", Rounding("bitsandbytes-nf4")),
        ("int8-sym", None), ("int4-g48", None), ("int5", None), ("gguf", None), (None, None),
    ],
)  # fmt: skip
def test_names(name, rounding):
    assert parse_rounding(name) == rounding


@pytest.mark.parametrize(
    ("name", "stored"),
    [(None, "awq"), ("awq", "awq"), ("int4", None), ("int4", "gguf"), ("gguf", "gguf"), (None, None)],
)
def test_what_goes_together(name, stored):
    check_setting(name, stored, "m")


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        ("int3", None, "quantization must be None or one of int8, int4, .* for 'm', got 'int3'"),
        ("gguf", None, "got 'gguf'"),
        ("awq", "gguf", "must be None or 'gguf' or one of int8"),
        ("int8", "gptq", r"'m' is quantised already \(gptq\)"),
    ],
)
def test_what_does_not(name, stored, message):
    with pytest.raises(ConfigError, match=message):
        check_setting(name, stored, "m")


def logits(folder, quantization, native):
    config = EngineConfig(quantization=quantization, kv_cache_bytes=2**22)
    with use(library() if native else None):
        executor = load_local(resolve_source(str(folder)), config)
    return executor, torch.cat([*window_logits(executor, TOKENS)])


def error(ours, exact):
    return ((ours - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("quantization", "least", "most"),
    [
        ("int8", 0.002, 0.03), ("int8-g32", 0.001, 0.02), ("int4", 0.02, 0.3), ("int4-g32-sym", 0.03, 0.4),
        ("fp8", 0.01, 0.15), ("bitsandbytes-int8", 0.003, 0.05), ("bitsandbytes-nf4", 0.02, 0.4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("quant", [None, "F32"], ids=["safetensors", "gguf"])
@pytest.mark.filterwarnings("ignore:.*bitsandbytes.*")
def test_weights_are_rounded_on_load(tiny_model, write_gguf, tmp_path, quantization, least, most, quant):
    folder = tiny_model("llama3")
    folder = folder if quant is None else write_gguf(folder, tmp_path / "tiny.gguf", quant)
    exact, whole = logits(folder, None, native=False)
    rounded, ours = logits(folder, quantization, native=False)
    assert least < error(ours, whole) < most
    assert rounded.parts.num_bytes < exact.parts.num_bytes * 0.75
    if library() is not None:
        native, same = logits(folder, quantization, native=True)
        torch.testing.assert_close(same, ours, atol=1e-3, rtol=0)
        is_native = any(level in str(native) for level in ("portable", "avx", "amx"))
        assert is_native == quantization.startswith("int")


def test_groups_that_do_not_fit(tiny_model):
    with pytest.raises(ConfigError, match="columns, no multiple of the quantization's group of 128"):
        logits(tiny_model("llama2"), "int4-g128", native=False)


def test_columns_that_cannot_be_packed_run_on_torch(tiny_model):
    executor, ours = logits(tiny_model("smollm2"), "int8", native=library() is not None)
    _, whole = logits(tiny_model("smollm2"), None, native=False)
    assert "weights in int8" in str(executor)
    assert error(ours, whole) < 0.03


def test_an_engine_generates_with_quantised_weights(tiny_model):
    llm = LLM(str(tiny_model("llama2")), quantization="int4", kv_cache_bytes=2**22, progress=False)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    (output,) = llm.generate([TOKENS], params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 8
    llm.close()
