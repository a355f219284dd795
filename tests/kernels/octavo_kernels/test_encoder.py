"""The native encoder on shapes that no model has, against plain loops in float64, on every instruction set."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.decoder import PackedLinear
from octavo_kernels.encoder import METHODS, NativeEncoder, PackedEncoder, PackedEncoderLayer, PackedNorm
from octavo_kernels.linear import PackedWeight
from octavo_kernels.linear.formats import Precision
from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, supported_levels, use

LEVELS = supported_levels()
if "avx512" in LEVELS:
    LEVELS.append("amx-emulated")

VOCAB, MAX_TOKENS = 50, 520

Doubles = npt.NDArray[np.float64]


@pytest.fixture(scope="module", params=LEVELS)
def native(request):
    try:
        library = Library(request.param)
    except NoCompiler:
        pytest.skip("no C++ compiler")
    with use(library):
        yield library


class Random:
    """Weights of a model, and the same in plain form."""

    def __init__(self, seed: int, form: torch.dtype = torch.float32) -> None:
        self._random = np.random.default_rng(seed)
        self._form = form

    def values(self, *shape: int, size: float = 1.0) -> npt.NDArray[np.float32]:
        return (self._random.standard_normal(shape) * size).astype(np.float32)

    def matrix(self, n: int, k: int, size: float = 1.0) -> PackedWeight:
        return PackedWeight.from_tensor(torch.from_numpy(self.values(n, k, size=size)).to(self._form))

    def linear(self, n: int, k: int) -> PackedLinear:
        return PackedLinear(self.matrix(n, k, size=k**-0.5), self.values(n, size=0.3))

    def norm(self, size: int) -> PackedNorm:
        return PackedNorm(1 + self.values(size, size=0.3), self.values(size, size=0.3))


def model(
    *, hidden=40, heads=4, kv_heads=2, dim=24, inner=50, layers=2, rotary=12, reach=None, gated=True, biased=False,
    activation="gelu", norm_first=True, form=torch.float32,
) -> PackedEncoder:  # fmt: skip
    """Heads of 24 values, widths that are multiples of no vector: what pads and cuts."""
    random = Random(1, form)
    angles = np.arange(MAX_TOKENS)[:, None] * 1000.0 ** -np.linspace(0, 1, rotary // 2)
    table = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    def layer(index: int) -> PackedEncoderLayer:
        return PackedEncoderLayer(
            *(random.linear(n * dim, hidden) for n in (heads, kv_heads, kv_heads)),
            random.linear(hidden, heads * dim),
            random.linear(inner, hidden) if gated else None,
            random.linear(inner, hidden),
            random.linear(hidden, inner),
            None if norm_first and index == 0 else random.norm(hidden),
            random.norm(hidden),
            table,
            reach,
        )

    return PackedEncoder(
        random.matrix(VOCAB, hidden), random.values(MAX_TOKENS + 2, hidden), random.values(2, hidden), 2,
        random.norm(hidden), random.norm(hidden) if norm_first else None, [layer(i) for i in range(layers)],
        heads, kv_heads, dim, activation, norm_first, True,
        random.values(heads, 2 * MAX_TOKENS - 1) if biased else None, 1e-5, dim**-0.5, 1.0, MAX_TOKENS,
    )  # fmt: skip


def plain(weight: PackedWeight) -> Doubles:
    return weight.rows(torch.arange(weight.n)).double().numpy()


def multiply(x: Doubles, linear: PackedLinear) -> Doubles:
    assert linear.bias is not None
    return x @ plain(linear.weight).T + linear.bias


def normed(x: Doubles, norm: PackedNorm | None) -> Doubles:
    if norm is None:
        return x
    centred = x - x.mean(-1, keepdims=True)
    assert norm.bias is not None
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5) * norm.weight + norm.bias


def rotated(x: Doubles, table: Doubles) -> Doubles:
    """[T, heads, dim]."""
    half = table.shape[1] // 2
    cos, sin = table[:, None, :half], table[:, None, half:]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def attention(m: PackedEncoder, layer: PackedEncoderLayer, x: Doubles) -> Doubles:
    count, dim = len(x), m.head_dim
    q, k, v = (multiply(x, linear).reshape(count, -1, dim) for linear in (layer.q, layer.k, layer.v))
    assert layer.rotary is not None
    table = layer.rotary[:count].astype(np.float64)
    group = m.query_heads // m.kv_heads
    q, k, v = rotated(q, table), rotated(k, table).repeat(group, 1), v.repeat(group, 1)
    scores = np.einsum("ihd,jhd->hij", q, k) * m.attention_scale
    distance = np.arange(count) - np.arange(count)[:, None]
    if m.bias is not None:
        scores += m.bias[:, distance + MAX_TOKENS - 1]
    if layer.reach is not None:
        scores[:, np.abs(distance) > layer.reach] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return multiply(np.einsum("hij,jhd->ihd", weights, v).reshape(count, -1), layer.out)


def mlp(m: PackedEncoder, layer: PackedEncoderLayer, x: Doubles) -> Doubles:
    functions = {
        "silu": torch.nn.functional.silu,
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }
    up = multiply(x, layer.up)
    active = functions[m.activation](torch.from_numpy(up if layer.gate is None else multiply(x, layer.gate))).numpy()
    return multiply(active if layer.gate is None else active * up, layer.down)


def reference(m: PackedEncoder, tokens: list[int], types: list[int]) -> Doubles:
    """The final states of one text."""
    assert m.positions is not None
    assert m.types is not None
    x = plain(m.embedding)[tokens] + m.types[types] + m.positions[2 : 2 + len(tokens)]
    x = normed(x, m.embedding_norm)
    for layer in m.layers:
        for branch, norm in ((attention, layer.attention_norm), (mlp, layer.mlp_norm)):
            x = x + branch(m, layer, normed(x, norm)) if m.norm_first else normed(x + branch(m, layer, x), norm)
    return normed(x, m.final_norm)


def batch(lengths: list[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Tokens, types and starts of texts whose second halves are of type 1."""
    random = np.random.default_rng(sum(lengths))
    tokens = random.integers(0, VOCAB, sum(lengths)).astype(np.int32)
    types = np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.int32)
    return tokens, types, np.cumsum([0, *lengths]).astype(np.int32)


@pytest.mark.parametrize("options", [
    {},
    {"reach": 0, "activation": "silu"},
    {"reach": 7, "biased": True, "norm_first": False, "gated": False},
    {"rotary": 0, "kv_heads": 4, "activation": "relu", "gated": False},
    {"hidden": 64, "dim": 64, "heads": 2, "inner": 96, "activation": "gelu_tanh", "rotary": 64, "reach": 260},
], ids=["gated", "window of 1", "biased", "relu", "wide"])  # fmt: skip
def test_states_equal_plain_loops(native, options):
    m = model(**options)
    lengths = [1, 17, 512, 2, 33]
    tokens, types, starts = batch(lengths)
    found = NativeEncoder(native, m, precision=Precision.EXACT, narrow=False).states(tokens, types, starts)
    for begin, end in pairwise(starts):
        expected = reference(m, tokens[begin:end].tolist(), types[begin:end].tolist())
        assert np.abs(found[begin:end] - expected).max() < 2e-5
        assert expected.std() > 0.5


@pytest.mark.parametrize("precision", Precision)
def test_a_text_has_the_same_bits_in_any_batch_on_any_number_of_threads(native, precision):
    forms = (torch.float32,) if precision is Precision.EXACT else (torch.float32, torch.bfloat16)
    narrow = precision is Precision.FAST
    encoders = [NativeEncoder(native, model(reach=40, form=x), precision=precision, narrow=narrow) for x in forms]

    @settings(max_examples=8, deadline=None)
    @given(st.lists(st.one_of(st.integers(1, 40), st.integers(1, 500)), min_size=1, max_size=9), st.data())
    def check(lengths, data):
        tokens, types, starts = batch(lengths)
        chosen = data.draw(st.integers(0, len(lengths) - 1))
        methods = np.array(
            data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths))), np.int32
        )
        text = slice(starts[chosen], starts[chosen + 1])
        for encoder in encoders:
            native.set_threads(data.draw(st.integers(1, 5)))
            together = encoder.step(tokens, types, starts, methods)[chosen]
            native.set_threads(data.draw(st.integers(1, 5)))
            own = np.array([0, lengths[chosen]], np.int32)
            alone = encoder.step(tokens[text].copy(), types[text].copy(), own, methods[chosen : chosen + 1])
            assert np.array_equal(together, alone[0])

    threads = native.threads
    try:
        check()
    finally:
        native.set_threads(threads)


def test_pooling_takes_the_first_state_the_mean_or_the_last(native):
    encoder = NativeEncoder(native, model(), precision=Precision.EXACT, narrow=False)
    tokens, types, starts = batch([5, 1, 300])
    states = encoder.states(tokens, types, starts)
    for method, pool in zip(METHODS, (lambda x: x[0], lambda x: x.mean(0), lambda x: x[-1]), strict=True):
        pooled = encoder.step(tokens, types, starts, np.full(3, METHODS.index(method), np.int32))
        expected = [pool(states[begin:end]) for begin, end in pairwise(starts)]
        np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_bf16_weights_stay_close_to_float32(native):
    m = model(form=torch.bfloat16, dim=32)
    tokens, types, starts = batch([64, 3, 300])
    modes = (Precision.EXACT, False), (Precision.FAST, True), (Precision.TWICE, False)
    exact, fast, twice = (
        NativeEncoder(native, m, precision=precision, narrow=narrow).states(tokens, types, starts)
        for precision, narrow in modes
    )
    assert 0 < np.linalg.norm(exact - fast) / np.linalg.norm(exact) < 0.02
    assert 0 < np.linalg.norm(exact - twice) / np.linalg.norm(exact) < 2e-5


def test_texts_that_are_empty_or_too_long_are_refused(native):
    encoder = NativeEncoder(native, replace(model(), max_tokens=30), precision=Precision.EXACT, narrow=False)
    for starts in ([0, 0, 3], [0, 31]):
        tokens, types = np.zeros((2, starts[-1]), np.int32)
        with pytest.raises(ValueError, match="must be 1 to 30"):
            encoder.step(tokens, types, np.array(starts, np.int32), np.zeros(len(starts) - 1, np.int32))
    assert encoder.step(tokens[:0], None, np.zeros(1, np.int32), np.zeros(0, np.int32)).shape == (0, 40)


def test_what_is_not_finite_stays_in_its_text(native):
    m = model()
    assert m.positions is not None
    m.positions[2 + 20] = np.nan  # only a text of more than 20 tokens gets there
    encoder = NativeEncoder(native, m, precision=Precision.FAST, narrow=True)
    tokens, types, starts = batch([20, 21, 5])
    pooled = encoder.step(tokens, types, starts, np.ones(3, np.int32))
    assert np.isfinite(pooled).all(1).tolist() == [True, False, True]
