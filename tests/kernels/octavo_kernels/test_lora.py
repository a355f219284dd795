"""The reference of an adapter's product, and how matrices are laid out for the native decoder."""

import numpy as np
import pytest
import torch

from octavo_kernels.lora.packed import Kind, PackedAdapter, to_bfloat16
from octavo_kernels.lora.reference import lora


def test_reference_is_two_products_in_float32():
    x, a, b = torch.randn(5, 12), torch.randn(3, 12), torch.randn(7, 3)
    torch.testing.assert_close(lora(x, a, b), x @ (b @ a).T)
    assert lora(x.bfloat16(), a, b).dtype == torch.float32


@pytest.mark.parametrize(("kind", "expected"), [
    (Kind.FLOAT32, 4 * (16 * 64 + 128 * 5)),
    (Kind.BFLOAT16, 2 * (16 * 64 + 128 * 6)),
    (Kind.INT8, 16 * 64 + 128 * 8 + 2 * (16 * 2 + 128)),
])  # fmt: skip
def test_bytes_are_those_of_the_ranks_alone(kind, expected):
    """B of rank 5 takes no room for 32 columns, as a weight would; q, k and v's A's share blocks of sixteen."""
    layer = {"q": pair(64, 5), "k": pair(32, 5), "v": pair(32, 5)}
    packed = PackedAdapter([layer, {}], [[kind] * 4] * 2)
    assert packed.num_bytes == expected
    assert len(packed._words) == 1 + 2 * (4 * 4 + 7 * 4)
    assert packed._words[0] == 15


def test_codes_are_within_half_a_step_of_what_they_stand_for():
    """Sixteen rows: their scales in bfloat16, then steps of four columns."""
    _, b = pair(16, 12)
    packed = PackedAdapter([{"out": (np.zeros((12, 32), np.float32), b)}], [[Kind.INT8] * 4])
    data = packed._data[-16 * (2 + 12) :]
    scales = (data[:32].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    codes = data[32:].reshape(3, 16, 4).astype(np.float32) - 128
    found = codes.transpose(1, 0, 2).reshape(16, 12) * scales[:, None]
    assert (np.abs(found - b) <= scales[:, None] * 0.5001).all()
    assert (scales <= np.abs(b).max(1) / 127 * (1 + 2**-7)).all()


def pair(rows, rank):
    random = np.random.default_rng(0)
    return random.standard_normal((rank, 64), np.float32), random.standard_normal((rows, rank), np.float32)


def test_bfloat16_is_rounded_as_torch_does():
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, torch.inf, torch.nan, 1.00390625, 1.01171875])])
    ours = to_bfloat16(values.numpy()).view(np.int16)
    np.testing.assert_array_equal(ours[:-3], values[:-3].bfloat16().view(torch.int16).numpy()[: len(ours) - 3])
    assert torch.from_numpy(ours).view(torch.bfloat16)[-3].isnan()
