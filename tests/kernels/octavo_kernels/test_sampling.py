"""The Triton sampler beside its definition, in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.execution.sampler import sample
from octavo.step import SamplingRows
from octavo_kernels import dispatch
from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, supported_levels, use
from octavo_kernels.sampling import sample as native_sample
from octavo_kernels.token_mask import mask_tokens_


def rows(count: int, **columns: Any) -> SamplingRows:
    """Seeds and positions of more than 32 bits; `columns` differ from drawing from everything."""
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    kinds = {name: np.int32 if name == "top_k" else np.float32 for name in defaults}
    values = {name: np.full(count, columns.get(name, default), kinds[name]) for name, default in defaults.items()}
    numbers = np.arange(count)
    return SamplingRows(
        token_index=numbers.astype(np.int32),
        seed=numbers.astype(np.uint64) * np.uint64(2**63 + 12345),
        position=numbers.astype(np.int64) + 2**33,
        num_logprobs=np.full(count, -1, np.int32),
        **values,
    )


@pytest.fixture
def kernel(gpu, device, monkeypatch) -> Callable[..., list[int]]:
    """Chunks of 256 tokens: vocabularies of several chunks, the last one not full, stay small."""

    def draw(logits: torch.Tensor, r: SamplingRows, logits_row: torch.Tensor | None = None) -> list[int]:
        module = gpu("sampling")
        monkeypatch.setattr(module, "CHUNK", 256)
        columns = (r.temperature, r.top_k, r.top_p, r.min_p, r.seed.view(np.int64), r.position)
        logits_row = torch.arange(len(logits)) if logits_row is None else logits_row
        tensors = (x.to(device) for x in (logits, logits_row, *map(torch.from_numpy, columns)))
        return module.sample(*tensors).tolist()

    return draw


FILTERS = {
    "temperature": [0, 1, 0.3, 1, 2, 1, 1, 0.7, 5, 1],
    "top_k": [3, 0, 0, 9, 1, 0, 500, 40, 0, 20],
    "top_p": [0.1, 1, 0.9, 1, 1, 1e-6, 0.9, 0.5, 0.99, 0.8],
    "min_p": [0, 0, 0, 0.1, 0, 0, 0, 0.05, 0, 1],
}


@pytest.mark.parametrize("vocab", [700, 30])
def test_every_row_has_its_own_filters(kernel, vocab) -> None:
    """Also rows so flat (5) or with so many tokens to keep (500) that the likely ones do not suffice."""
    logits, r = torch.randn(10, vocab) * 3, rows(10, **FILTERS)
    assert kernel(logits, r) == sample(logits, r)[0].tolist()


def test_ties_at_the_edge_stay(kernel) -> None:
    """Logits in steps of a half: hundreds of equals, and a nucleus that ends among them."""
    logits = (torch.randn(8, 700) * 2).round() / 2
    r = rows(
        8, top_k=[5, 0, 40, 400, 0, 1, 0, 3], top_p=[1, 0.3, 0.5, 0.9, 0.95, 0.5, 1, 0.2], min_p=[0] * 6 + [0.2, 0]
    )
    assert kernel(logits, r) == sample(logits, r)[0].tolist()


def test_broken_rows_are_marked_and_greedy_takes_the_first_of_equals(kernel) -> None:
    logits = torch.randn(6, 600)
    logits[0, 300], logits[1, 5], logits[2] = torch.nan, torch.inf, -torch.inf
    logits[3, [7, 290, 599]] = 9.0
    logits[4, 10:] = -torch.inf
    r = rows(6, temperature=[1, 0, 1, 0, 1, 0], top_p=[0.5, 1, 1, 1, 0.9, 1])
    ours = kernel(logits, r)
    assert ours == sample(logits, r)[0].tolist()
    assert ours[:4] == [-1, -1, -1, 7]
    assert ours[4] < 10


def test_rows_may_share_logits(kernel) -> None:
    logits, r, logits_row = torch.randn(2, 300) * 2, rows(4, top_p=[1, 0.9, 1, 0.9]), torch.tensor([1, 0, 1, 1])
    assert kernel(logits, r, logits_row) == sample(logits[logits_row], r)[0].tolist()


def test_the_torch_sampler_calls_it_on_a_gpu(gpu, device, monkeypatch) -> None:
    logits, r = torch.randn(5, 300) * 2, rows(5, temperature=[0, 1, 1, 0.5, 2], top_k=[0, 0, 9, 0, 0], top_p=0.9)
    logits[1, 3] = torch.inf
    expected = sample(logits, r)[0].tolist()
    gpu("sampling")  # interpreted, where there is no GPU
    monkeypatch.setattr(dispatch, "use_gpu", lambda _: True)
    assert sample(logits.to(device), r)[0].tolist() == expected


def launch() -> None:
    from octavo_kernels.sampling import gpu

    floats, integers = torch.zeros(8), torch.zeros(8, dtype=torch.int64)
    gpu.sample(torch.empty(8, 128_256), integers, floats, integers.int(), floats, floats, integers, integers)


LAUNCHES: dict[str, Callable[[], object]] = {"draw": launch}


@pytest.mark.slow
def test_the_kernels_compile_for_a_hopper(compile_launches) -> None:
    (kernels,) = compile_launches(__file__, 90).values()
    assert len(kernels) == 3
    assert all(kernel.spilled == 0 for kernel in kernels)


@pytest.fixture(scope="module", params=supported_levels())
def native(request: pytest.FixtureRequest) -> Library:
    try:
        return Library(request.param)
    except NoCompiler:
        pytest.skip("no C++ compiler")


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 3000),
    words=st.integers(1, 95),
    share=st.sampled_from([0.0, 0.001, 0.5, 1.0]),
    temperature=st.sampled_from([0.0, 0.7, 5.0]),
    top_k=st.sampled_from([0, 1, 50]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**20),
)
def test_masks_that_are_read_draw_what_masks_that_are_written_do(
    native: Library, vocab: int, words: int, share: float, seed: int, **filters: Any
) -> None:
    """Bit by bit the same sums: every token is the same, with whatever logits where it is forbidden."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (9, vocab)).astype(np.float32)
    bits = (random.random((7, 32 * words)) < share).astype(np.uint8)
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    masked = np.array([0, 2, 3, 4, 6, 7, 8], np.int32)
    written, r = logits.copy(), rows(9, **filters)
    r.seed += np.uint64(seed)
    options = r.temperature, r.top_k, r.top_p, r.min_p, r.seed, r.position
    with use(native):
        mask_tokens_(written, masked.astype(np.int64), masks)
        for row in (2, 6):
            logits[row, written[row] == -np.inf] = random.choice([np.nan, np.inf, -np.inf])
        want = native_sample(written, np.arange(9), *options)
        assert native_sample(logits, np.arange(9), *options, masks, masked).tolist() == want.tolist()


def test_rows_that_share_logits_have_masks_of_their_own(native: Library) -> None:
    r, logits = rows(3, temperature=0.0), np.array([[1, 2, 3, 4]], np.float32)
    options = r.temperature, r.top_k, r.top_p, r.min_p, r.seed, r.position
    masks, masked = np.array([[0b0101], [0b0010]], np.uint32), np.array([0, 2], np.int32)
    with use(native):
        assert native_sample(logits, np.zeros(3, np.int64), *options, masks, masked).tolist() == [2, 3, 1]
