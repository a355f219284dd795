"""What adapters add: the reference, the kernel beside it, and how matrices are laid out for the native decoder."""

import numpy as np
import pytest
import torch

from octavo_kernels.lora import add_lora_, reference
from octavo_kernels.lora.packed import Kind, PackedAdapter, to_bfloat16
from octavo_kernels.lora.reference import lora
from octavo_kernels.lora.segments import TILE, WORDS, Change, Segments, sort_rows

# A GPU sums three TF32 products for one of float32. Triton's interpreter holds bfloat16 as integers, and its tl.dot
# multiplies those.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
GPU_TYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()


def test_reference_is_two_products_in_float32():
    x, a, b = torch.randn(5, 12), torch.randn(3, 12), torch.randn(7, 3)
    torch.testing.assert_close(lora(x, a, b), x @ (b @ a).T)
    assert lora(x.bfloat16(), a, b).dtype == torch.float32


@pytest.mark.parametrize(("kind", "expected"), [
    (Kind.FLOAT32, 4 * (16 * 64 + 128 * 5)),
    (Kind.BFLOAT16, 2 * (16 * 64 + 128 * 6)),
    (Kind.INT8, 16 * 64 + 128 * 8 + 2 * (16 * 2 + 128)),
    (Kind.FLOAT16, 2 * (16 * 64 + 128 * 5)),
])  # fmt: skip
def test_bytes_are_those_of_the_ranks_alone(kind, expected):
    """B of rank 5 takes no room for 32 columns, as a weight would; q, k and v's A's share blocks of sixteen."""
    layer = {"q": pair(64, 5), "k": pair(32, 5), "v": pair(32, 5)}
    packed = PackedAdapter([layer, {}], [[kind] * 4] * 2)
    assert packed.num_bytes == expected
    assert len(packed._words) == 1 + 2 * (4 * 4 + 7 * 5)
    assert packed._words[0] == 3


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


def test_halves_of_a_large_a_and_a_tiny_b_are_of_one_size():
    """Whose product stays: a float16 has no 1e-9."""
    a, b = pair(16, 12)
    packed = PackedAdapter([{"out": (a * 2000, b * 1e-9)}], [[Kind.FLOAT16] * 4])
    halves = packed._data.view(np.float16).astype(np.float32)
    ours = halves[: 16 * 64].reshape(2, 32, 16).transpose(2, 0, 1).reshape(16, 64)[:12]
    theirs = halves[16 * 64 :].reshape(12, 16).T
    np.testing.assert_allclose(theirs @ ours, 2e-6 * (b @ a), atol=2e-6 * 1e-2)
    assert 0.5 < np.abs(ours).max() / np.abs(theirs).max() < 4


def pair(rows, rank):
    random = np.random.default_rng(0)
    return random.standard_normal((rank, 64), np.float32), random.standard_normal((rows, rank), np.float32)


def test_bfloat16_is_rounded_as_torch_does():
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, torch.inf, torch.nan, 1.00390625, 1.01171875])])
    ours = to_bfloat16(values.numpy()).view(np.int16)
    np.testing.assert_array_equal(ours[:-3], values[:-3].bfloat16().view(torch.int16).numpy()[: len(ours) - 3])
    assert torch.from_numpy(ours).view(torch.bfloat16)[-3].isnan()


def step(of_rows, sizes, inner, ranks, device, dtype=torch.float32):
    """y, x and the other arguments; ranks: of each adapter those of its parts, 0 where one is not changed."""
    torch.manual_seed(0)

    def made(*shape):
        return (torch.randn(*shape) / shape[1] ** 0.5).to(device, dtype)

    changes = [
        Change.of([(made(r, inner), made(n, r)) if r else None for n, r in zip(sizes, each, strict=True)])
        if any(each) else None for each in ranks
    ]  # fmt: skip
    words = torch.tensor([[0] * WORDS if change is None else change.words for change in changes], device=device)
    y, x = made(len(of_rows), sum(sizes)), made(len(of_rows), inner)
    return y, x, sizes, segments_of(of_rows, device), changes, words


CASES = [
    ([0], (40,), 24, [(5,)]),
    ([-1, 0, -1, 0] + [0] * 40 + [1], (100, 33, 33), 130, [(16, 3, 0), (0, 0, 37)]),
    ([1, 2, 1, 0, -1, 2], (70, 70), 2100, [(64, 8), (0, 0), (1, 1)]),  # columns of several programs
]


def test_rows_are_sorted_into_tiles_of_one_adapter():
    rows, adapter = sort_rows(np.array([1, -1, 0, 1] + [0] * TILE))
    assert adapter.tolist() == [0, 0, 1]
    found = rows.reshape(3, TILE)
    assert found[0].tolist() == [2, *range(4, 3 + TILE)]
    assert found[1, 0] == 3 + TILE
    assert (found[1, 1:] == -1).all()
    assert found[2, :2].tolist() == [0, 3]


@pytest.mark.parametrize("case", CASES, ids=["one", "parts", "spans"])
def test_each_part_of_a_matrix_gets_its_change(case):
    y, x, sizes, segments, changes, words = step(*case, "cpu")
    expected = y.clone()
    for i, adapter in enumerate(case[0]):
        change = changes[adapter] if adapter >= 0 else None
        for part, (a, b) in change.pairs() if change else ():
            expected[i, sum(sizes[:part]) : sum(sizes[: part + 1])] += b @ (a @ x[i])
    add_lora_(y, x, sizes, segments, changes, words)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", GPU_TYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=["one", "parts", "spans"])
def test_gpu_adds_what_the_reference_does(gpu, device, case, dtype):
    y, *others = step(*case, device, dtype)
    expected = y.clone()
    gpu("lora").add_lora_(y, *others)
    reference.add_lora_(expected, *others)
    torch.testing.assert_close(y, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_gpu_rows_have_their_own_bits(gpu, device, row_by_row):
    of_rows = [0, 1, -1, *[0] * 19, 1]
    y, x, sizes, _, changes, words = step(of_rows, (40, 24), 1100, [(16, 5), (3, 0)], device)
    alone = y.clone()
    gpu("lora").add_lora_(y, x, sizes, segments_of(of_rows, device), changes, words)
    for i, adapter in enumerate(of_rows):
        if adapter >= 0:
            row, one = alone[i : i + 1], slice(adapter, adapter + 1)
            gpu("lora").add_lora_(row, x[i : i + 1], sizes, segments_of([0], device), changes[one], words[one])
    assert torch.equal(y, alone)


def test_refuses_what_does_not_fit():
    y, x, sizes, *others = step(*CASES[1], "cpu")
    with pytest.raises(ValueError, match=r"parts of \[100, 33\]"):
        add_lora_(y, x, sizes[:2], *others)
    with pytest.raises(ValueError, match="float64"):
        add_lora_(y.double(), x, sizes, *others)


def segments_of(of_rows, device):
    return Segments(*(torch.from_numpy(x).to(device) for x in sort_rows(np.array(of_rows))))
