"""What fits where, the 80/20 rule, and money."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.planning.machines import MACHINES
from octavo.planning.plan import Wanted, hold, plan
from octavo.planning.shape import shape_of

GIB = 2**30

# model -> billions of parameters, and of those in embeddings and output matrix, which stay in 16 bits; the rest takes
# 2, 1 and 1/2 bytes (and scales, which are below 4 %)
WEIGHTS = {
    "google/gemma-2b": (2.506, 0.524), "google/gemma-7b": (8.538, 0.786),
    "meta-llama/Meta-Llama-3-8B": (8.030, 1.051), "meta-llama/Meta-Llama-3-70B": (70.55, 2.101),
    "mistralai/Mixtral-8x7B-v0.1": (46.70, 0.262), "tiiuae/falcon-7b": (6.922, 0.295),
    "tiiuae/falcon-40b": (41.30, 0.533), "tiiuae/falcon-180B": (178.56, 0.965), "bigscience/bloom": (176.25, 3.597),
}  # fmt: skip


@pytest.mark.parametrize(("quantization", "bytes_per_weight"), [("none", 2), ("int8", 1), ("int4", 0.5)])
def test_usual_suspects_in_16_8_and_4_bits(suspect, configs, quantization, bytes_per_weight):
    shape = shape_of(configs[suspect])
    holding = hold(shape, MACHINES["h100"], Wanted(quantization=quantization), 1)
    total, plain = WEIGHTS[suspect]
    expected = (total - plain) * bytes_per_weight + plain * 2
    assert holding.weight_bytes() / 1e9 == pytest.approx(expected, rel=0.05)


KV = {
    # bytes per token at 16 bits, by hand: 2 x layers x key-value heads x head size x 2
    "google/gemma-2b": 18_432, "google/gemma-7b": 458_752, "meta-llama/Meta-Llama-3-8B": 131_072,
    "meta-llama/Meta-Llama-3-70B": 327_680, "mistralai/Mixtral-8x7B-v0.1": 131_072, "tiiuae/falcon-7b": 8192,
    "tiiuae/falcon-40b": 122_880, "tiiuae/falcon-180B": 163_840, "bigscience/bloom": 4_014_080,
}  # fmt: skip


def test_kv_of_the_usual_suspects(suspect, configs):
    assert hold(shape_of(configs[suspect]), MACHINES["h100"], Wanted(), 1).kv_bytes_per_token() == KV[suspect]


@pytest.mark.parametrize(
    ("model", "quantization", "machine", "ranks"),
    [
        ("meta-llama/Meta-Llama-3-8B", "none", "l4", 1),
        ("meta-llama/Meta-Llama-3-8B", "none", "t4", 2),
        ("meta-llama/Meta-Llama-3-70B", "none", "h100", 2),
        ("meta-llama/Meta-Llama-3-70B", "none", "h200", 2),
        ("meta-llama/Meta-Llama-3-70B", "int4", "h100", 1),
        ("mistralai/Mixtral-8x7B-v0.1", "none", "a100-80gb", 2),
        ("tiiuae/falcon-180B", "none", "h100", 8),
        ("bigscience/bloom", "none", "h100", 8),
        ("tiiuae/falcon-7b", "none", "l4", 1),
    ],
)
def test_devices_needed(configs, model, quantization, machine, ranks):
    fit = plan(shape_of(configs[model]), MACHINES[machine], Wanted(quantization=quantization))
    assert (fit.fits, fit.ranks) == (True, ranks)


def test_falcon_7b_cannot_be_shared(configs):
    """71 heads: where one device is too small, no group helps."""
    small = replace(MACHINES["l4"], memory=8 * GIB)
    fit = plan(shape_of(configs["tiiuae/falcon-7b"]), small, Wanted())
    assert (fit.fits, fit.ranks, fit.rates) == (False, 1, None)


def test_the_sum_of_all_parts(llama_8b):
    machine = MACHINES["l4"]
    memory = plan(llama_8b, machine, Wanted(max_model_len=2048)).memory
    assert memory.kv_room == pytest.approx(0.9 * machine.memory - memory.overhead - memory.weights)
    assert memory.kv_tokens == int(memory.kv_room / memory.kv_per_token / 16) * 16
    assert memory.full_length == memory.kv_tokens // 2048
    assert memory.typical == memory.kv_tokens // 640
    assert memory.longest_context == 2048


def test_large_steps_take_from_the_room(llama_8b):
    """Where a step's activations exceed what utilization leaves free, KV gets less."""
    machine, wanted = MACHINES["l4"], Wanted(max_num_batched_tokens=32_768)
    memory = plan(llama_8b, machine, wanted).memory
    assert memory.activations > 0.1 * machine.memory
    assert memory.kv_room == pytest.approx(machine.memory - memory.activations - memory.overhead - memory.weights)


sizes = st.integers(6, 400)


@given(gib=sizes, more=st.integers(1, 50), tokens=st.integers(16, 8192), quantization=st.sampled_from(["none", "int8"]))
def test_more_memory_never_holds_less(gib, more, tokens, quantization):
    shape = shape_of({"model_type": "llama", "num_key_value_heads": 8, "max_position_embeddings": 8192})
    wanted = Wanted(max_model_len=tokens, quantization=quantization)
    small, large = (plan(shape, replace(MACHINES["l4"], memory=n * GIB), wanted) for n in (gib, gib + more))
    assert large.fits >= small.fits
    assert not small.fits or large.ranks <= small.ranks
    for fit in (small, large):
        used = fit.memory.weights + fit.memory.overhead + fit.memory.kv_tokens * fit.memory.kv_per_token
        assert used <= (gib + more) * GIB or not fit.fits
        assert not fit.fits or fit.memory.kv_tokens >= tokens


def test_the_rule_agrees(llama_8b):
    fit = plan(llama_8b, MACHINES["h100"], Wanted())
    assert (fit.rule, fit.rule_ranks, fit.ranks) == ("agrees", 1, 1)


def test_the_rule_is_too_lax_with_many_long_sequences(llama_8b):
    """15 GiB of weights are 66 % of an L4, but 8 sequences of 8192 tokens take 8 GiB more."""
    fit = plan(llama_8b, MACHINES["l4"], Wanted(concurrency=8))
    assert (fit.rule, fit.rule_ranks, fit.ranks) == ("too lax", 1, 2)


def test_the_rule_is_too_strict_with_short_sequences_of_few_heads(configs):
    """Falcon 7B keeps 8 KB per token: 87 % of a 16 GB device for weights leaves room for a few hundred tokens."""
    device = replace(MACHINES["l4"], memory=16 * 10**9, overhead=2**28)
    fit = plan(shape_of(configs["tiiuae/falcon-7b"]), device, Wanted(gpu_memory_utilization=0.95))
    assert fit.memory.share > 0.8
    assert (fit.rule, fit.rule_ranks, fit.fits) == ("too strict", None, True)


def test_the_rule_asks_for_twice_the_devices(configs):
    """Llama 3 70B: its weights are 84 % of two H100, and beside them lie 27,000 tokens."""
    fit = plan(shape_of(configs["meta-llama/Meta-Llama-3-70B"]), MACHINES["h100"], Wanted())
    assert (fit.rule, fit.rule_ranks, fit.ranks) == ("too strict", 4, 2)
    assert fit.memory.kv_tokens > 3 * 8192


def test_money(llama_8b):
    wanted = Wanted()
    free, paid = plan(llama_8b, MACHINES["l4"], wanted), plan(llama_8b, MACHINES["l4"], wanted, price=0.72)
    assert free.rates.dollars_per_million is None
    per_second = paid.rates.output
    assert paid.rates.tokens_per_dollar == pytest.approx(per_second * 3600 / 0.72)
    assert paid.rates.dollars_per_million == pytest.approx(1e6 / paid.rates.tokens_per_dollar)
    two = plan(llama_8b, MACHINES["l4"], replace(wanted, tensor_parallel=2), price=0.72)
    assert two.rates.tokens_per_dollar == pytest.approx(two.rates.output * 3600 / 1.44)


def test_rates_hang_together(llama_8b):
    rates = plan(llama_8b, MACHINES["h100"], Wanted()).rates
    assert rates.decode_alone < rates.output < rates.decode_batch < rates.batch * rates.decode_alone
    assert rates.batch == 64


def test_types(llama_8b):
    def types(machine, **wanted):
        holding = hold(llama_8b, MACHINES[machine], Wanted(**wanted), 1)
        return holding.dtype, holding.kv_dtype

    assert types("h100") == ("bfloat16", "bfloat16")
    assert types("t4") == ("float16", "float16")
    assert types("h100", dtype="float16", kv_dtype="fp8") == ("float16", "fp8")


def test_a_cpu_computes_in_float32_over_weights_as_they_are_stored(llama_8b):
    cpu = replace(MACHINES["l4"], name="cpu", most=1)
    holding = hold(llama_8b, cpu, Wanted(), 1)
    assert (holding.dtype, holding.weight_dtype, holding.kv_dtype) == ("float32", "bfloat16", "float32")
    gguf = hold(replace(llama_8b, stored_bits=4.5), cpu, Wanted(), 1)
    on_gpu = hold(replace(llama_8b, stored_bits=4.5), MACHINES["l4"], Wanted(), 1)
    assert gguf.quantization.name == on_gpu.quantization.name == "gguf"
    assert set(gguf.quantization.roles) - set(on_gpu.quantization.roles) == {"embedding"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of auto, float32"),
        ({"kv_dtype": "int4"}, "kv_dtype must be one of"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"max_model_len": -5}, "max_model_len"),
        ({"gpu_memory_utilization": 1.5}, r"\(0, 1\]"),
    ],
)
def test_bad_wishes(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Wanted(**wrong)


def test_heads_that_cannot_be_shared(llama_8b):
    with pytest.raises(ConfigError, match="32 query heads and 8 key-value heads cannot be shared evenly"):
        plan(llama_8b, MACHINES["h100"], Wanted(tensor_parallel=3))


MINILM = {"model_type": "bert", "vocab_size": 30_522, "hidden_size": 384, "intermediate_size": 1536,
          "num_hidden_layers": 6, "num_attention_heads": 12, "max_position_embeddings": 512,
          "type_vocab_size": 2}  # fmt: skip


def test_an_encoder_needs_no_room_for_keys_and_values():
    shape = shape_of(MINILM)
    assert shape.parameters == 22_565_376  # all-MiniLM-L6-v2's without its pooler, which sentence-transformers drops
    small = replace(MACHINES["l4"], memory=2 * GIB)
    fit = plan(shape, small, Wanted(dtype="float32", input_tokens=128, concurrency=64), price=1.0)
    memory, rates = fit.memory, fit.rates
    assert (fit.fits, memory.kv_per_token, memory.kv_tokens) == (True, 0, 0)
    assert (memory.typical, memory.full_length, memory.longest_context) == (8, 2, 512)
    assert (rates.decode_alone, rates.decode_batch, rates.output) == (None, None, None)
    assert rates.texts * 128 == pytest.approx(rates.prefill)
    assert rates.dollars_per_million == pytest.approx(1 / 3600 / rates.prefill * 1e6)
    assert not plan(shape, replace(small, memory=small.overhead), Wanted()).fits


def test_long_texts_cost_an_encoder_more_than_their_tokens():
    """Attention grows with the square: a token costs 21 MFLOP in linear layers, and 4 x 384 x 6 for each it sees."""
    machine = replace(MACHINES["l4"], bandwidth=1e15)  # arithmetic alone
    short, long = (plan(shape_of(MINILM), machine, Wanted(input_tokens=n)).rates.prefill for n in (16, 512))
    linear = 2 * 10_616_832
    assert short / long == pytest.approx((linear + 4 * 384 * 6 * 512) / (linear + 4 * 384 * 6 * 16), rel=1e-3)
