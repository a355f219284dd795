"""Masks of tokens against their definition, bit by bit: in torch, in Triton, and in C++ with every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, supported_levels, use
from octavo_kernels.token_mask import mask_tokens_, reference

# logits' rows, those with a mask, vocabulary, words of a mask
SHAPES = [
    (1, 1, 32, 1),
    (3, 2, 1, 1),
    (4, 4, 2500, 79),
    (5, 3, 2500, 40),
    (2, 1, 31, 3),
    (6, 0, 70, 3),
    (3, 3, 70001, 2188),
]


def inputs(rows: int, masked: int, vocab: int, words: int, seed: int = 0):
    """Masks with words of all kinds: nothing, everything, one token, half of them."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 4, (rows, vocab)).astype(np.float32)
    masks = random.integers(0, 2**32, (masked, words), np.uint32)
    kind = random.integers(0, 4, masks.shape)
    masks[kind == 0], masks[kind == 1] = 0, 2**32 - 1
    masks[kind == 2] = np.uint32(1) << random.integers(0, 32, (kind == 2).sum(), np.uint32)
    return logits, random.permutation(rows)[:masked], masks


def by_definition(logits, logits_row, masks):
    out = logits.copy()
    for row, mask in zip(logits_row, masks, strict=True):
        for token in range(logits.shape[1]):
            word = int(mask[token // 32]) if token // 32 < len(mask) else 0
            if not word >> token % 32 & 1:
                out[row, token] = -np.inf
    return out


def in_torch(mask, logits, logits_row, masks, device: str = "cpu"):
    tensors = [torch.from_numpy(x).to(device) for x in (logits, logits_row, masks.view(np.int32))]
    mask(*tensors)
    return tensors[0].cpu().numpy()


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_is_what_is_defined(shape) -> None:
    logits, logits_row, masks = inputs(*shape)
    want = by_definition(logits, logits_row, masks)
    assert in_torch(reference.mask_tokens_, logits.copy(), logits_row, masks).tobytes() == want.tobytes()
    mask_tokens_(logits, logits_row, masks)  # there is no library here
    assert logits.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_gpu_equals_reference(gpu, device: str, shape, dtype: torch.dtype) -> None:
    numbers = inputs(*shape)
    logits, logits_row = torch.from_numpy(numbers[0]).to(device, dtype), torch.from_numpy(numbers[1]).to(device)
    masks = torch.from_numpy(numbers[2].view(np.int32)).to(device)
    want = logits.clone()
    reference.mask_tokens_(want, logits_row, masks)
    gpu("token_mask").mask_tokens_(logits, logits_row, masks)
    assert torch.equal(logits, want)


@pytest.fixture(scope="module", params=supported_levels())
def native(request):
    try:
        return Library(request.param)
    except NoCompiler:
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_equals_reference_on_any_number_of_threads(native, shape) -> None:
    logits, logits_row, masks = inputs(*shape)
    want = in_torch(reference.mask_tokens_, logits.copy(), logits_row, masks)
    for threads in (1, 2, 3):
        native.set_threads(threads)
        masked = logits.copy()
        with use(native):
            mask_tokens_(masked, logits_row, masks)
        assert masked.tobytes() == want.tobytes()


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 4), vocab=st.integers(1, 200), words=st.integers(1, 9), seed=st.integers(0, 2**20))
def test_native_equals_the_definition(native, rows, vocab, words, seed) -> None:
    logits, logits_row, masks = inputs(rows, rows, vocab, words, seed)
    want = by_definition(logits, logits_row, masks)
    with use(native):
        mask_tokens_(logits, logits_row, masks)
    assert logits.tobytes() == want.tobytes()


def test_what_is_forbidden_stays_so_whatever_it_was(native) -> None:
    logits = np.array([[np.nan, np.inf, -np.inf, 1.0] * 10], np.float32)
    with use(native):
        mask_tokens_(logits, np.zeros(1, np.int64), np.array([[8]], np.uint32))
    assert np.flatnonzero(logits[0] > -np.inf).tolist() == [3]
    assert not np.isnan(logits).any()
