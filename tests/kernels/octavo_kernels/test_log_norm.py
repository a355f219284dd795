"""Norms of log probabilities against torch's, and a row's bits in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo_kernels.log_norm import log_norm_tensors, log_norms, reference
from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, supported_levels, use

VOCABULARIES = [1, 7, 513, 5000, 70_003]


def inputs(vocab: int, device: str = "cpu"):
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(4, vocab, generator=generator) * 5
    logits[1] = -torch.inf
    logits[1, vocab // 2] = 3.0
    logits[2] = (logits[2] * 2).round() / 2  # ties
    rows = torch.tensor([3, 0, 2, 1, 0])
    tokens = torch.tensor([0, vocab - 1, vocab // 3, vocab // 2, 0])
    return logits.to(device), rows.to(device), tokens.to(device)


def check(found, logits, rows, tokens) -> None:
    want = logits.double().logsumexp(-1)[rows].float()
    torch.testing.assert_close(found[0], want, rtol=3e-7, atol=1e-6)
    assert found[1].tolist() == [1 + int((logits[r] > logits[r, t]).sum()) for r, t in zip(rows, tokens, strict=True)]


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_is_the_logarithm_of_the_sum(vocab: int) -> None:
    x = inputs(vocab)
    check(log_norm_tensors(*x), *x)
    assert [len(column) for column in reference.log_norms(x[0], x[1][:0], x[2][:0])] == [0, 0]


@pytest.mark.parametrize("vocab", VOCABULARIES[:4])
def test_gpu_is_the_logarithm_of_the_sum(gpu, device: str, vocab: int) -> None:
    x = inputs(vocab, device)
    found = gpu("log_norm").log_norms(*x)
    check([column.cpu() for column in found], *(column.cpu() for column in x))
    alone = [gpu("log_norm").log_norms(x[0], x[1][i : i + 1], x[2][i : i + 1])[0] for i in range(5)]
    assert torch.equal(torch.cat(alone), found[0])


@pytest.mark.parametrize("level", supported_levels())
def test_native_rows_have_the_same_bits_in_any_company_on_any_number_of_threads(level: str) -> None:
    try:
        native = Library(level)
    except NoCompiler:
        pytest.skip("no C++ compiler")
    with use(native):
        for vocab in VOCABULARIES:
            x = inputs(vocab)
            found = log_norm_tensors(*x)
            check(found, *x)
            arrays = [column.numpy() for column in x]
            for threads in (1, 2, 3):
                native.set_threads(threads)
                assert log_norms(*arrays)[0].tobytes() == found[0].numpy().tobytes()
                alone = [log_norms(arrays[0][[row]], np.zeros(1, np.int64), arrays[2][[i]])[0][0]
                         for i, row in enumerate(arrays[1])]  # fmt: skip
                assert np.array(alone).tobytes() == found[0].numpy().tobytes()
