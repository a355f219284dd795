"""Quantised checkpoints, written here as their formats define them, against transformers with dequantised weights.

GPTQ: AutoGPTQ's `QuantLinear.pack` (qlinear_cuda_old.py). AWQ: AutoAWQ's `WQLinear_GEMM.from_linear`.
compressed-tensors: `pack_to_int32` of its pack_quantized compressor. The packers below follow their definitions.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from octavo.errors import ConfigError, ModelError
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.source_spec import check_loadable, read_share, read_spec, why_not_packed
from octavo.source import resolve_source
from octavo_kernels.decoder import NativeDecoder, PackedKV
from octavo_kernels.linear.formats import Precision
from octavo_kernels.linear.grouped import Float8Weight, GroupedWeight
from octavo_kernels.native.library import library, use

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")

GROUP = 32


def words(codes: np.ndarray, bits: int, axis: int, order=None) -> torch.Tensor:
    """Codes packed along an axis into int32, lowest first; `order[i]` is the code that lies i-th from below."""
    per_word = 32 // bits
    codes = np.moveaxis(codes.astype(np.uint64), axis, 0)
    packed = np.zeros((len(codes) // per_word, *codes.shape[1:]), np.uint64)
    for i, place in enumerate(order or range(per_word)):
        packed |= codes[place::per_word] << np.uint64(bits * i)
    return torch.from_numpy(np.moveaxis(packed.astype(np.uint32), 0, axis).view(np.int32).copy())


class Codes:
    """Random codes [n, k], scales and zero points [n, groups], and the matrix that they stand for."""

    def __init__(self, n, k, bits, *, zero, group=GROUP, order=False, dtype=torch.float16, seed=0):
        random = np.random.default_rng(seed)
        groups = k // group
        self.bits = bits
        self.codes = random.integers(0, 2**bits, (n, k))
        # 1 at least: GPTQ stores zero points less one, and cannot say 0
        self.zero = random.integers(1, 2**bits, (n, groups)) if zero else np.full((n, groups), 2 ** (bits - 1))
        spread = 2.0 / 2**bits / np.sqrt(k)
        self.scale = torch.from_numpy(random.uniform(0.5, 1.5, (n, groups)) * spread).to(dtype)
        self.group_of = random.permutation(k) // group if order else np.arange(k) // group
        scale, zero = self.scale.double().numpy()[:, self.group_of], self.zero[:, self.group_of]
        self.matrix = torch.from_numpy(((self.codes - zero) * scale).astype(np.float32))


def gptq(codes: Codes, v2=False) -> dict[str, torch.Tensor]:
    return {
        "qweight": words(codes.codes.T, codes.bits, 0),
        "qzeros": words(codes.zero.T - (0 if v2 else 1), codes.bits, 1),
        "scales": codes.scale.T.contiguous(),
        "g_idx": torch.from_numpy(codes.group_of.astype(np.int32)),
    }


def awq(codes: Codes) -> dict[str, torch.Tensor]:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {
        "qweight": words(codes.codes.T, 4, 1, order),
        "qzeros": words(codes.zero.T, 4, 1, order),
        "scales": codes.scale.T.contiguous(),
    }


def compressed(codes: Codes, *, zero: bool, order=False) -> dict[str, torch.Tensor]:
    """The library adds half the range to signed codes before it packs them: ours are those sums."""
    made = {
        "weight_packed": words(codes.codes, codes.bits, 1),
        "weight_scale": codes.scale,
        "weight_shape": torch.tensor(codes.codes.shape),
    }
    if zero:
        made["weight_zero_point"] = words(codes.zero, codes.bits, 0)
    if order:
        made["weight_g_idx"] = torch.from_numpy(codes.group_of.astype(np.int32))
    return made


def int8(codes: Codes, *, zero: bool) -> dict[str, torch.Tensor]:
    made = {"weight": torch.from_numpy((codes.codes - 128).astype(np.int8)), "weight_scale": codes.scale}
    if zero:
        made["weight_zero_point"] = torch.from_numpy((codes.zero - 128).astype(np.int8))
    return made


def _scheme(kind, **weights):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": group},
            "ignore": ["lm_head"]}  # fmt: skip


def _gptq(bits, **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": False, **more}


_PACKED = {"type": "int", "strategy": "group", "group_size": GROUP}
_WHOLE = {"type": "int", "strategy": "channel", "num_bits": 8}

SCHEMES = {
    "gptq4": (_gptq(4), {"bits": 4, "zero": True}, gptq, "Z4"),
    "gptq8": (_gptq(8), {"bits": 8, "zero": True}, gptq, "Z8"),
    "gptq4-sym": (_gptq(4, sym=True), {"bits": 4, "zero": False}, gptq, "Q4_0"),
    "gptq4-v2": (_gptq(4, checkpoint_format="gptq_v2"), {"bits": 4, "zero": True}, lambda c: gptq(c, v2=True), "Z4"),
    "gptq4-act-order": (_gptq(4, desc_act=True), {"bits": 4, "zero": True, "order": True}, gptq, None),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
            {"bits": 4, "zero": True}, awq, "Z4"),
    "w4a16": (_scheme("pack-quantized", num_bits=4, symmetric=True, **_PACKED),
              {"bits": 4, "zero": False, "dtype": torch.bfloat16}, lambda c: compressed(c, zero=False), "Q4_0"),
    "w4a16-zero": (_scheme("pack-quantized", num_bits=4, symmetric=False, **_PACKED),
                   {"bits": 4, "zero": True}, lambda c: compressed(c, zero=True), "Z4"),
    "w8a16": (_scheme("pack-quantized", num_bits=8, symmetric=True, **_PACKED),
              {"bits": 8, "zero": False}, lambda c: compressed(c, zero=False), "Q8_0"),
    "w4a16-act-order": (_scheme("pack-quantized", num_bits=4, symmetric=True, actorder="group", **_PACKED),
                        {"bits": 4, "zero": False, "order": True}, lambda c: compressed(c, zero=False, order=True),
                        None),
    "w8a8": (_scheme("int-quantized", symmetric=True, **_WHOLE),
             {"bits": 8, "zero": False, "group": None}, lambda c: int8(c, zero=False), "Q8_0"),
    "w8a8-zero": (_scheme("int-quantized", symmetric=False, **_WHOLE),
                  {"bits": 8, "zero": True, "group": None}, lambda c: int8(c, zero=True), "Z8"),
}  # fmt: skip
"""Name -> quantization_config, how codes are drawn, how they are written, and the packed format they end in."""


@pytest.fixture
def write(tiny_model, tmp_path):
    """`write(config, make)` -> the folder of a quantised model, and one with the same weights dequantised.

    `make(n, k)` gives a matrix's tensors and the matrix.
    """

    def call(config, make, family="llama2", extra=None):
        folder, quantized, plain = tiny_model(family), {}, {}
        for index, (name, tensor) in enumerate(sorted(load_file(folder / "model.safetensors").items())):
            if "_proj.weight" not in name:
                quantized[name] = plain[name] = tensor
                continue
            tensors, plain[name] = make(*tensor.shape, index)
            quantized |= {f"{name.removesuffix('weight')}{part}": value for part, value in tensors.items()}
        folders = tmp_path / "quantized", tmp_path / "plain"
        for target, tensors in zip(folders, (quantized | (extra or {}), plain), strict=True):
            shutil.copytree(folder, target)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
        whole = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
        (folders[0] / "config.json").write_text(json.dumps(whole))
        return folders

    return call


@pytest.fixture
def scheme(write):
    """`scheme(name)` -> folders as `write` gives, and the packed format."""

    def call(name, **more):
        config, drawn, pack, packed = SCHEMES[name]

        def make(n, k, seed):
            options = {key: value for key, value in drawn.items() if key != "group"}
            codes = Codes(n, k, seed=seed, group=drawn.get("group", GROUP) or k, **options)
            return pack(codes), codes.matrix

        return *write(config, make, **more), packed

    return call


def native_logits(source, tokens):
    spec, model = load_packed(source, dtype="float32")
    blocks = -(-len(tokens) // 16)
    kv = PackedKV(spec.num_layers, blocks, 16, spec.num_kv_heads, spec.head_dim, "float32")
    decoder = NativeDecoder(library(), model, kv, precision=Precision.EXACT)
    starts, contexts = np.array([0, len(tokens)], np.int32), np.array([len(tokens)], np.int32)
    tables = np.arange(blocks, dtype=np.int32)[None]
    logits = decoder.step(np.array(tokens, np.int32), starts, contexts, tables, np.arange(len(tokens)))
    return model, torch.from_numpy(logits.copy())


@pytest.mark.parametrize("name", SCHEMES)
def test_logits_are_those_of_the_dequantised_model(scheme, reference, paged_run, sequences, name):
    folder, plain, packed = scheme(name)
    source, tokens = resolve_source(str(folder)), sequences[0]
    expected = reference(plain).logits(tokens)
    with use(None):
        decoder = load_model(source)
        ours = paged_run(decoder, 1, len(tokens)).all_logits([tokens])[0]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert {type(part) for layer in decoder.weights.layers for part in layer.qkv.parts} == {GroupedWeight}
    assert decoder.weights.num_bytes < load_model(resolve_source(str(plain))).weights.num_bytes * 0.75
    assert (why_not_packed(source, None, read_spec(source)) is None) == (packed is not None)
    if packed is not None and library() is not None:
        model, logits = native_logits(source, tokens)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert {layer.down.weight.format for layer in model.layers} == {packed}


@pytest.mark.parametrize("scale", ["channel", "tensor"])
def test_fp8(write, reference, paged_run, sequences, scale):
    config = _scheme("float-quantized", type="float", num_bits=8, strategy=scale, symmetric=True)

    def make(n, k, seed):
        generator = torch.Generator().manual_seed(seed)
        codes = (torch.randn(n, k, generator=generator) * 30).to(torch.float8_e4m3fn)
        factors = torch.rand(n, 1, generator=generator) * 0.01 if scale == "channel" else torch.tensor([0.004])
        unused = {"input_scale": torch.ones(1)}
        return {"weight": codes, "weight_scale": factors, **unused}, codes.float() * factors

    folder, plain = write(config, make)
    source, tokens = resolve_source(str(folder)), sequences[0]
    decoder = load_model(source)
    ours = paged_run(decoder, 1, len(tokens)).all_logits([tokens])[0]
    torch.testing.assert_close(ours, reference(plain).logits(tokens), atol=1e-4, rtol=0)
    assert isinstance(decoder.weights.layers[0].down.parts[0], Float8Weight)
    assert why_not_packed(source, None, read_spec(source)) == "fp8 matrices cannot be packed"


def test_biases_are_kept_and_those_that_autogptq_made_up_are_not(scheme, reference, paged_run, sequences):
    folder, plain, _ = scheme("gptq4", family="qwen2", extra={"model.layers.0.self_attn.o_proj.bias": torch.zeros(64)})
    tokens = sequences[0]
    ours = paged_run(load_model(resolve_source(str(folder))), 1, len(tokens)).all_logits([tokens])[0]
    torch.testing.assert_close(ours, reference(plain).logits(tokens), atol=1e-4, rtol=0)


def test_matrices_that_were_left_alone(write, reference, paged_run, sequences):
    def make(n, k, seed):
        codes = Codes(n, k, 4, zero=True, seed=seed)
        return ({"weight": codes.matrix} if n == 96 else gptq(codes)), codes.matrix

    folder, plain = write(_gptq(4), make)
    source, tokens = resolve_source(str(folder)), sequences[0]
    expected = reference(plain).logits(tokens)
    ours = paged_run(load_model(source), 1, len(tokens)).all_logits([tokens])[0]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    if library() is not None:
        model, logits = native_logits(source, tokens)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert (model.layers[0].gate.weight.format, model.layers[0].q.weight.format) == ("F32", "Z4")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_gptq(3), "GPTQ checkpoints with bits 3 are not supported; supported: 4 and 8"),
        (_gptq(4, checkpoint_format="marlin"), "checkpoint_format marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ checkpoints with version gemv"),
        (_scheme("nvfp4-pack-quantized", type="float", num_bits=4), "format nvfp4-pack-quantized"),
        (_scheme("pack-quantized", type="int", num_bits=3, strategy="group"), "type of weights int3"),
        (_scheme("float-quantized", type="float", num_bits=8, strategy="block"), "strategy of float8 weights block"),
        (_scheme("pack-quantized", **_PACKED, num_bits=4) | {"sparsity_config": {"format": "sparse-24-bitmask"}},
         "sparse-24-bitmask"),
        ({"quant_method": "quip"}, r"quantised \(quip\).* supported are gptq, awq, compressed-tensors, mxfp4, GGUF"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(tiny_model, tmp_path, config, message):
    folder = shutil.copytree(tiny_model("llama2"), tmp_path / "odd")
    settings = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        read_spec(resolve_source(str(folder)))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("scales", None, "lacks layers.0.mlp.down_proj.scales"),
        ("scales", lambda x: x[:-1], "down_proj contradict each other"),
        ("qzeros", lambda x: x[:, :-1], "down_proj contradict each other"),
        ("g_idx", lambda x: x * 0, "groups have different numbers of columns"),
        ("qweight", lambda x: x[:-1], "tensors of the wrong shape: layers.0.mlp.down_proj.weight"),
    ],
)
def test_damaged_checkpoints(scheme, part, change, message):
    folder, _, _ = scheme("gptq4")
    file, name = folder / "model.safetensors", f"model.layers.0.mlp.down_proj.{part}"
    tensors = load_file(file)
    tensor = tensors.pop(name)
    save_file(tensors if change is None else tensors | {name: change(tensor).contiguous()}, file)
    with pytest.raises(ModelError, match=message):
        load_model(resolve_source(str(folder)))


STRANGE = st.sampled_from(
    [None, True, 0, -1, 3, 2**70, 1.5, float("nan"), "", "int", [], [1], {}, {"a": 1}, {"weights": 1}]
)


def settings_of(value, path=()):
    """The path of every value inside a config."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in settings_of(child, (*path, key)))]


@pytest.fixture(params=["gptq4", "awq", "w4a16-zero"])
def quantised(request, scheme):
    return scheme(request.param)[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_any_value_in_a_quantization_config(quantised, data):
    path, source = quantised / "config.json", resolve_source(str(quantised))
    before, spec, two = path.read_text(), read_spec(source), SimpleNamespace(rank=0, size=2)
    config = holder = json.loads(before)
    *outer, last = ("quantization_config", *data.draw(st.sampled_from(settings_of(config["quantization_config"]))))
    for key in outer:
        holder = holder[key]
    holder[last] = data.draw(STRANGE)
    try:
        path.write_text(json.dumps(config))
        for read in (
            lambda: read_share(source, two),
            lambda: check_loadable(source, None, None),
            lambda: why_not_packed(source, None, spec),
            lambda: load_model(source),
            lambda: load_packed(source, dtype="float32"),
        ):
            with suppress(ModelError, ConfigError):
                read()
    finally:
        path.write_text(before)


def test_a_quantised_checkpoint_is_not_quantised_again(scheme):
    source = resolve_source(str(scheme("awq")[0]))
    load_model(source, quantization="awq")
    with pytest.raises(ConfigError, match="is quantised already"):
        load_model(source, quantization="int4")
    with pytest.raises(ConfigError, match="must be None or 'awq' for"):
        load_model(source, quantization="gptq")
