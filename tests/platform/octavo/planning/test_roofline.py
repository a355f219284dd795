"""The roofline's formulas on cases that can be done by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.planning.machines import MACHINES
from octavo.planning.memory import Holding, find_quantization
from octavo.planning.roofline import Roofline
from octavo.planning.shape import shape_of

H100 = MACHINES["h100"]


def roofline(shape, machine=H100, ranks=1, quantization="none"):
    return Roofline(
        Holding(shape, "bfloat16", "bfloat16", find_quantization(quantization, shape), "bfloat16", ranks), machine
    )


def test_decoding_alone_reads_the_weights_and_the_context_once(llama_8b):
    line = roofline(llama_8b)
    read = line.holding.weight_bytes("linear", "head", "norm") + 1001 * line.holding.kv_bytes_per_token()
    assert line.decode_seconds(1, 1000) == pytest.approx(read / H100.bandwidth)


def test_a_long_prompt_multiplies_at_the_dense_rate(llama_8b):
    tokens = 4096
    linear = 2 * (tokens * 6.979_321_856e9 + 128_256 * 4096)  # the layers' matrices, and one row of logits
    attention = 4 * 4096 * 32 * tokens * (tokens + 1) / 2
    expected = (linear + attention) / H100.rates["bfloat16"]
    assert roofline(llama_8b).prefill_seconds(tokens, tokens) == pytest.approx(expected, rel=1e-6)


def test_chunks_add_up_and_cost_no_less_than_one_step(llama_8b):
    line = roofline(llama_8b)
    chunked = line.step_seconds(600, 1, 600 * 601 / 2) + line.step_seconds(400, 1, 400 * 600 + 400 * 401 / 2)
    assert line.prefill_seconds(1000, 600) == pytest.approx(chunked)
    assert chunked >= line.prefill_seconds(1000, 1000)


@given(sequences=st.integers(1, 500), context=st.integers(1, 8000), ranks=st.sampled_from([1, 2, 4, 8]))
def test_more_work_never_takes_less_time(sequences, context, ranks):
    shape = shape_of({"model_type": "qwen3", "hidden_size": 1024, "head_dim": 64, "num_key_value_heads": 8})
    line = roofline(shape, ranks=ranks)
    seconds = line.decode_seconds(sequences, context)
    assert seconds <= line.decode_seconds(sequences + 1, context)
    assert seconds <= line.decode_seconds(sequences, context + 1)


def test_few_bits_speed_up_decoding_but_not_prefill(llama_8b):
    plain, few = roofline(llama_8b), roofline(llama_8b, quantization="int4")
    assert plain.decode_seconds(1, 100) / few.decode_seconds(1, 100) == pytest.approx(3.2, abs=0.2)
    assert few.prefill_seconds(2048, 2048) == plain.prefill_seconds(2048, 2048)
    eight = roofline(llama_8b, quantization="fp8")
    assert eight.prefill_seconds(2048, 2048) == pytest.approx(plain.prefill_seconds(2048, 2048) / 2, rel=0.1)


def test_a_machine_without_8_bit_rates_multiplies_in_the_models_type(llama_8b):
    v100 = MACHINES["v100-32gb"]
    half = replace(roofline(llama_8b, v100).holding, dtype="float16")
    eight = replace(half, quantization=find_quantization("int8", llama_8b))
    assert Roofline(eight, v100).prefill_seconds(2048, 2048) == Roofline(half, v100).prefill_seconds(2048, 2048)


def test_tokens_share_experts(mixtral):
    line = roofline(mixtral)
    fixed = line.holding.weight_bytes("linear", "router", "head", "norm")
    experts = line.holding.weight_bytes("expert")

    def read(tokens):
        kv = tokens * 2 * line.holding.kv_bytes_per_token()
        return line.decode_seconds(tokens, 1) * H100.bandwidth - kv

    assert read(1) == pytest.approx(fixed + experts / 4)
    assert read(2) == pytest.approx(fixed + experts * (1 - 0.75**2))
    assert read(32) == pytest.approx(fixed + experts, rel=0.001)


def test_ranks_divide_the_work_and_pay_for_sums(llama_8b):
    one, two = roofline(llama_8b), roofline(llama_8b, ranks=2)
    joined = roofline(llama_8b, replace(H100, link=1e30), ranks=2)
    assert joined.decode_seconds(1, 1000) == pytest.approx(one.decode_seconds(1, 1000) / 2, rel=0.001)
    moved = 2 * 32 * 2 * 0.5 * 4096 * 2  # two sums a layer, each moves the hidden state once at two ranks
    assert two.decode_seconds(1, 1000) - joined.decode_seconds(1, 1000) == pytest.approx(moved / H100.link)


def test_windows_bound_what_attention_reads():
    sizes = {"model_type": "mistral", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4}
    windowed, full = (roofline(shape_of(sizes | {"sliding_window": size})) for size in (512, None))
    per_token = full.holding.kv_bytes_per_token()
    assert windowed.decode_seconds(1, 300) == full.decode_seconds(1, 300)
    saved = (full.decode_seconds(1, 4096) - windowed.decode_seconds(1, 4096)) * H100.bandwidth
    assert saved == pytest.approx((4096 - 512) * per_token)
