"""The reference of an adapter's product, and how matrices are laid out for the native decoder."""

import numpy as np
import pytest
import torch

from octavo_kernels.lora.packed import PackedAdapter, to_bfloat16
from octavo_kernels.lora.reference import lora


def test_reference_is_two_products_in_float32():
    x, a, b = torch.randn(5, 12), torch.randn(3, 12), torch.randn(7, 3)
    torch.testing.assert_close(lora(x, a, b), x @ (b @ a).T)
    assert lora(x.bfloat16(), a, b).dtype == torch.float32


@pytest.mark.parametrize("exact", [True, False])
def test_bytes_are_those_of_the_ranks_alone(exact):
    """B of rank 5 takes no room for 32 columns, as a weight would; q, k and v's A's share blocks of sixteen."""
    random = np.random.default_rng(0)

    def pair(rows, rank):
        return random.standard_normal((rank, 64), np.float32), random.standard_normal((rows, rank), np.float32)

    layer = {"q": pair(64, 5), "k": pair(32, 5), "v": pair(32, 5)}
    packed = PackedAdapter([layer, {}], exact=exact)
    rank = 5 if exact else 6
    assert packed.num_bytes == (4 if exact else 2) * (16 * 64 + (64 + 32 + 32) * rank)
    assert len(packed._words) == 1 + 2 * (4 * 5 + 7 * 4)
    assert packed._words[0] == 15


def test_bfloat16_is_rounded_as_torch_does():
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, torch.inf, torch.nan, 1.00390625, 1.01171875])])
    ours = to_bfloat16(values.numpy()).view(np.int16)
    np.testing.assert_array_equal(ours[:-3], values[:-3].bfloat16().view(torch.int16).numpy()[: len(ours) - 3])
    assert torch.from_numpy(ours).view(torch.bfloat16)[-3].isnan()
