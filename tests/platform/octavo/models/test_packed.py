"""The native decoder over packed weights, against the torch decoder of the same checkpoint, and against itself."""

from __future__ import annotations

from functools import cache

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.models import latent
from octavo.models.load import load_model
from octavo.models.packed import load_packed, unpackable_formats
from octavo.source import Source, resolve_source
from octavo_kernels.decoder import NativeDecoder, PackedKV
from octavo_kernels.kv_store import reference as kv_reference
from octavo_kernels.linear.formats import Precision
from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, supported_levels, use
from octavo_kernels.qkv_rope_store import reference as qkv_reference

BLOCK = 16
QUANTIZED = ["Q4_0", "Q8_0", "F16", "BF16"]  # those that the gguf package can write


@pytest.fixture(scope="module", params=supported_levels())
def native(request):
    try:
        return Library(request.param)
    except NoCompiler:
        pytest.skip("no C++ compiler")


@pytest.fixture(scope="module")
def best():
    try:
        return Library(supported_levels()[-1])
    except NoCompiler:
        pytest.skip("no C++ compiler")


class NativeRun:
    """Sequences that grow by ragged steps over scattered blocks, as `PagedRun` does for the torch decoder."""

    def __init__(self, library, source, num_sequences, dtype="float32", kv_dtype=None, precision=None):
        self.spec, model = load_packed(source, dtype=dtype, max_model_len=400)
        per_sequence = 400 // BLOCK
        num_blocks = num_sequences * per_sequence + 5
        blocks = np.random.default_rng(0).permutation(num_blocks)[: num_sequences * per_sequence]
        self.tables = blocks.reshape(num_sequences, per_sequence).astype(np.int32)
        self.computed = [0] * num_sequences
        kv = PackedKV(self.spec.num_layers, num_blocks, BLOCK, self.spec.num_kv_heads, self.spec.head_dim,
                      kv_dtype or dtype, self.spec.kv_parts)  # fmt: skip
        kv._data[:] = 0xFF  # NaN, wherever nothing was stored; of int8, in the scales
        precision = precision or (Precision.EXACT if dtype == "float32" else Precision.FAST)
        self.decoder = NativeDecoder(library, model, kv, precision=precision)

    def step(self, chunks, last_only=False):
        rows = list(chunks)
        for row in rows:
            self.computed[row] += len(chunks[row])
        starts = np.cumsum([0] + [len(chunks[row]) for row in rows]).astype(np.int32)
        tokens = np.array([token for row in rows for token in chunks[row]], np.int32)
        contexts = np.array([self.computed[row] for row in rows], np.int32)
        if last_only:
            token_index = (starts[1:] - 1).astype(np.int64)
            logits = self.decoder.step(tokens, starts, contexts, self.tables[rows], token_index, whole=False)
            return dict(zip(rows, logits.copy(), strict=True))
        logits = self.decoder.step(tokens, starts, contexts, self.tables[rows], np.arange(len(tokens)))
        return {row: logits[starts[i] : starts[i + 1]].copy() for i, row in enumerate(rows)}

    def all_logits(self, sequences, seed=0, chunks=(1, 1, 3, 16, 200)):
        random, parts = np.random.default_rng(seed), [[] for _ in sequences]
        while left := [i for i, tokens in enumerate(sequences) if self.computed[i] < len(tokens)]:
            chosen = random.permutation(left)[: random.integers(1, len(left) + 1)].tolist()
            begins = {i: self.computed[i] for i in chosen}
            ends = {i: begins[i] + int(random.choice(chunks)) for i in chosen}
            for i, logits in self.step({i: sequences[i][begins[i] : ends[i]] for i in chosen}).items():
                parts[i].append(logits)
        return [np.concatenate(part) for part in parts]


@pytest.fixture(scope="module")
def long_sequences():
    """Some past a split of 256 positions, one of a single token."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, length).tolist() for length in (300, 1, 33, 270, 5)]


def torch_logits(source, sequences, paged_run):
    """Of the plain PyTorch decoder."""
    with use(None):
        decoder = load_model(source)
        return paged_run(decoder, len(sequences), 400).all_logits(sequences)


@pytest.fixture(scope="module")
def plain(tiny_model, paged_run, long_sequences):
    """`plain(name)` -> what the plain PyTorch decoder says; with keys and values `rounded` by the reference, or not."""

    @cache
    def logits(name, rounded=False):
        with pytest.MonkeyPatch.context() as patch:
            if rounded:
                patch.setattr(latent if name == "latent" else qkv_reference, "kv_store", store_rounded)
            return torch_logits(resolve_source(str(tiny_model(name))), long_sequences, paged_run)

    return logits


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, atol=tolerance, rtol=0)


def test_every_family_in_float32(best, tiny_model, tiny_name, plain, long_sequences):
    run = NativeRun(best, resolve_source(str(tiny_model(tiny_name))), len(long_sequences))
    assert_close(run.all_logits(long_sequences), plain(tiny_name), 1e-4)


@pytest.mark.parametrize("name", ["gemma3", "llama_biases", "mpt", "latent"])
def test_every_instruction_set(native, tiny_model, plain, long_sequences, name):
    source, theirs = resolve_source(str(tiny_model(name))), plain(name)
    assert_close(NativeRun(native, source, len(long_sequences)).all_logits(long_sequences), theirs, 1e-4)
    half = NativeRun(native, source, len(long_sequences), "bfloat16").all_logits(long_sequences)
    for a, b in zip(half, theirs, strict=True):
        assert ((torch.from_numpy(a) - b).norm() / b.norm()).item() < 0.05


@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_mixtures_on_every_instruction_set(native, tiny_model, paged_run, sequences, name):
    """In the fast mode too, but for a token here and there that a rounding sends to another expert."""
    source = resolve_source(str(tiny_model(name)))
    theirs = torch_logits(source, sequences, paged_run)
    assert_close(NativeRun(native, source, len(sequences)).all_logits(sequences), theirs, 1e-4)
    half = NativeRun(native, source, len(sequences), "bfloat16").all_logits(sequences)
    for a, b in zip(half, theirs, strict=True):
        assert ((torch.from_numpy(a) - b).norm(dim=-1) / b.norm(dim=-1)).median().item() < 0.05


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.2), ("bfloat16", 1.5)])
@pytest.mark.parametrize("name", ["gemma3", "smollm2", "latent"])
def test_8_bit_keys_and_values_are_the_reference_s(native, tiny_model, plain, long_sequences, name, dtype, bound):
    """Against the torch decoder with keys and values rounded by the reference: far closer to it than it is to full
    precision (not equal: a difference in the last bit may tip a code)."""
    source = resolve_source(str(tiny_model(name)))
    ours = NativeRun(native, source, len(long_sequences), dtype, "int8").all_logits(long_sequences)
    for a, b, c in zip(ours, plain(name, rounded=True), plain(name), strict=True):
        effect = ((b - c).norm() / c.norm()).item()
        assert 1e-4 < effect < 0.1
        assert ((torch.from_numpy(a) - b).norm() / b.norm()).item() < bound * effect + 0.02 * (dtype == "bfloat16")


def store_rounded(k, v, k_cache, v_cache, slots, _scales):
    parts = [kv_reference.quantize(x) for x in (k, v)]
    kv_reference.kv_store(*[codes * scales for codes, scales in parts], k_cache, v_cache, slots)


@pytest.mark.parametrize("types", [
    ("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("float32", "bfloat16"),
    ("bfloat16", None, Precision.TWICE),
])  # fmt: skip
@pytest.mark.parametrize("name", ["gemma3", "smollm2", "qwen2_windows", "latent"])
def test_logits_have_the_same_bits_alone_in_batches_and_in_chunks(native, tiny_model, long_sequences, name, types):
    source = resolve_source(str(tiny_model(name)))
    count = len(long_sequences)
    native.set_threads(1)
    whole = NativeRun(native, source, count, *types)
    alone = [whole.step({i: tokens})[i] for i, tokens in enumerate(long_sequences)]
    native.set_threads(2)
    for seed, chunks in enumerate([(1, 1, 3, 16, 200), (16,), (1,), (64, 500)]):
        ours = NativeRun(native, source, count, *types).all_logits(long_sequences, seed, chunks)
        assert all(np.array_equal(a, b) for a, b in zip(ours, alone, strict=True)), chunks


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["qwen2_moe", "qwen3_moe_dense", "gpt_oss", "glm4_moe"]),
    types=st.sampled_from(
        [
            ("float32", "float32"),
            ("bfloat16", "bfloat16"),
            ("bfloat16", "int8"),
            ("bfloat16", "bfloat16", Precision.TWICE),
        ]
    ),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    chunks=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_a_token_s_bits_depend_on_no_other_however_experts_are_shared(
    best, tiny_model, name, types, lengths, chunks, seed
):
    """An expert's rows come from other tokens in each step, and are multiplied in tiles of other heights."""
    source = resolve_source(str(tiny_model(name)))
    random = np.random.default_rng(seed)
    sequences = [random.integers(0, 256, length).tolist() for length in lengths]
    best.set_threads(1)
    whole = NativeRun(best, source, len(sequences), *types)
    alone = [whole.step({i: tokens})[i] for i, tokens in enumerate(sequences)]
    best.set_threads(2)
    together = NativeRun(best, source, len(sequences), *types).all_logits(sequences, seed, chunks)
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_that_nothing_is_drawn_after_may_skip_the_last_layer(native, tiny_model, long_sequences, dtype):
    """One prompt, two, one token, and a prompt beside single tokens: the bits of the last tokens' logits stay."""
    source = resolve_source(str(tiny_model("gemma3")))
    whole, short = (NativeRun(native, source, len(long_sequences), dtype) for _ in range(2))
    first, *others = 0, 2, 3
    for ends in ({first: 40}, dict.fromkeys(others, 30), {first: 41}, dict.fromkeys(others, 31) | {first: 90}):
        begins = {i: whole.computed[i] for i in ends}
        chunks = {i: long_sequences[i][begins[i] : end] for i, end in ends.items()}
        expected, found = whole.step(chunks), short.step(chunks, last_only=True)
        assert all(np.array_equal(found[i], expected[i][-1]) for i in ends)


@pytest.mark.parametrize(
    ("name", "quant"),
    [*((name, quant) for name in ("llama3", "gemma3", "mixtral") for quant in QUANTIZED), ("gpt_oss", "MXFP4")],
)
def test_gguf_blocks_are_multiplied_as_they_are(
    best, tiny_model, write_gguf, paged_run, long_sequences, tmp_path, name, quant
):
    """Exactly, the logits of the dequantised model; with 16-bit and 8-bit activations, close to them."""
    source = resolve_source(str(write_gguf(tiny_model(name), tmp_path / "tiny.gguf", quant)))
    theirs = torch_logits(source, long_sequences, paged_run)
    exact = NativeRun(best, source, len(long_sequences))
    assert_close(exact.all_logits(long_sequences), theirs, 2e-4)
    for bound, options in (0.1, {"dtype": "bfloat16"}), (4e-4, {"precision": Precision.TWICE}):
        rounded = NativeRun(best, source, len(long_sequences), **options).all_logits(long_sequences)
        for a, b in zip(rounded, theirs, strict=True):
            assert ((torch.from_numpy(a) - b).norm() / b.norm()).item() < bound


def test_packed_weights_take_the_bits_of_their_format(tiny_model, write_gguf, tmp_path):
    source = resolve_source(str(write_gguf(tiny_model("llama3"), tmp_path / "tiny.gguf", "Q4_0")))
    _, model = load_packed(source, dtype="bfloat16")
    assert {weight.format for weight in model.matrices} == {"Q4_0"}
    assert 4.5 <= model.bits_per_weight < 4.8  # 18 bytes for 32 weights, and 300 rows padded to 304


def test_a_directory_keeps_its_type_unless_bfloat16_is_asked_for(tiny_model):
    source = resolve_source(str(tiny_model("llama2")))
    for dtype, expected in (("float32", "F32"), ("bfloat16", "BF16")):
        _, model = load_packed(source, dtype=dtype)
        assert {weight.format for weight in model.matrices} == {expected}


def test_formats_that_cannot_be_packed_are_named(tiny_model, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    kind = gguf.GGMLQuantizationType.TQ1_0
    writer.add_tensor("a", gguf.quants.quantize(np.ones((2, 256), np.float32), kind), raw_dtype=kind)
    writer.add_tensor("b", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert unpackable_formats(Source("odd", tmp_path / "odd.gguf", "gguf")) == ["TQ1_0"]
    assert unpackable_formats(resolve_source(str(tiny_model("llama2")))) == []


def test_more_positions_than_the_model_has_are_refused(tiny_model):
    with pytest.raises(ConfigError, match="max_model_len is 9999"):
        load_packed(resolve_source(str(tiny_model("llama2"))), dtype="float32", max_model_len=9999)


def test_blocks_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="blocks of 16 n"):
        PackedKV(1, 4, 8, 1, 16, "float32")


def test_copies_read_every_block_before_they_write(best):
    kv = PackedKV(2, 4, 16, 1, 16, "bfloat16")
    kv._data[:] = np.arange(4, dtype=np.uint8)[:, None]
    kv.copy([(0, 1), (1, 2)])
    assert kv._data[:, 1].tolist() == [0, 0, 1, 3]
