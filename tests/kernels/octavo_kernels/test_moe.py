"""Routing, and products over tiles of one expert each, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from octavo_kernels.linear.blocks import BlockWeight
from octavo_kernels.linear.grouped import quantize_float8, quantize_grouped
from octavo_kernels.moe import moe, reference, route

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}
if torch.cuda.is_available():  # the interpreter's tl.dot is wrong for it
    TOLERANCE[torch.bfloat16] = 8e-2


def problem(tokens: int, count: int, chosen: int, width: int, inner: int, dtype=torch.float32, *, skewed=False):
    """x, shares, experts, gate_up, down; skewed: nearly all tokens want the same experts."""
    scores = torch.randn(tokens, count)
    if skewed:
        scores[:, :chosen] += 4
    shares, experts = reference.route(scores, chosen, normalise=True)
    gate_up = torch.randn(count * 2 * inner, width) * width**-0.5
    down = torch.randn(count * width, inner) * inner**-0.5
    return torch.randn(tokens, width).to(dtype), shares, experts, gate_up.to(dtype), down.to(dtype)


def by_definition(x, shares, experts, gate_up, down, count, biases=None, limit=None):
    """One token at a time, in float64."""
    inner = down.shape[1]
    w1, w2 = gate_up.double().view(count, 2 * inner, -1), down.double().view(count, -1, inner)
    b1, b2 = (b.double().view(count, -1) for b in biases or (torch.zeros(len(gate_up)), torch.zeros(len(down))))
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, row in enumerate(x.double()):
        for share, e in zip(shares[t].double(), experts[t].tolist(), strict=True):
            gate, up = (w1[e] @ row + b1[e]).split(inner)
            if limit is None:
                hidden = torch.nn.functional.silu(gate) * up
            else:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
                hidden = (up + 1) * gate * torch.sigmoid(1.702 * gate)
            out[t] += share * (w2[e] @ hidden + b2[e])
    return out


@pytest.mark.parametrize("normalise", [False, True])
def test_the_reference_by_definition(normalise) -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    shares, experts = route(scores, 2, normalise=normalise)
    assert experts.tolist() == [[1, 2], [0, 1]]  # of equals the first
    of_all = scores.softmax(-1)[0, 1].item()
    assert shares.tolist() == [pytest.approx([0.5 if normalise else of_all] * 2), [0.5 if normalise else 0.25] * 2]
    parts = problem(7, 5, 2, 12, 10)
    torch.testing.assert_close(moe(*parts, 5).double(), by_definition(*parts, 5), atol=1e-5, rtol=0)


def test_groups_of_experts() -> None:
    """Of two groups the better one is kept, by its best expert alone or, with a bias, by its best two."""
    scores = torch.tensor([[3.0, -9, 0, 2, 1, 0.5]])
    shares, experts = route(scores, 2, normalise=False, groups=(2, 1), scale=2.5)
    assert experts.tolist() == [[0, 2]]
    assert shares.tolist() == [pytest.approx((2.5 * scores.softmax(-1))[0, [0, 2]].tolist())]
    bias = torch.tensor([0.0, 0, 0, 0, 0, 1])
    shares, experts = route(scores, 2, normalise=True, scoring="sigmoid", choice_bias=bias, groups=(2, 1), scale=2.5)
    assert experts.tolist() == [[5, 3]]
    chosen = scores.sigmoid()[0, [5, 3]]
    assert shares.tolist() == [pytest.approx((2.5 * chosen / chosen.sum()).tolist())]


def test_biases_and_clamped_gates(gpu, device) -> None:
    parts = problem(9, 4, 2, 40, 24)
    biases = torch.randn(4 * 2 * 24), torch.randn(4 * 40)
    expected = by_definition(*parts, 4, biases, 1.5)
    torch.testing.assert_close(moe(*parts, 4, biases=biases, limit=1.5).double(), expected, atol=1e-5, rtol=0)
    parts, biases = (tuple(x.to(device) for x in given) for given in (parts, biases))
    ours = gpu("moe").moe(*parts, 4, biases=biases, limit=1.5).cpu()
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (5, 2), (60, 4), (128, 8)])
def test_the_kernel_routes_as_the_reference(gpu, device, count, chosen) -> None:
    scores = torch.randn(9, count).half()
    scores[3] = 0.5  # all alike
    scores[4, ::2] = scores[4].max()
    for normalise in (False, True):
        ours, chosen_ours = gpu("moe").route(scores.to(device), chosen, normalise=normalise)
        theirs, chosen_theirs = reference.route(scores, chosen, normalise=normalise)
        assert torch.equal(chosen_ours.cpu(), chosen_theirs)
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_gpu_a_broken_row_gets_some_expert(gpu, device) -> None:
    scores = torch.randn(3, 33)
    scores[1, 4] = torch.nan
    _, experts = gpu("moe").route(scores.to(device), 4, normalise=True)
    assert ((experts >= 0) & (experts < 33)).all()
    assert torch.equal(experts[::2].cpu(), reference.route(scores[::2], 4, normalise=True)[1])


@pytest.mark.parametrize(
    ("pairs", "count", "tile"), [(1, 1, 16), (1, 70, 16), (150, 3, 16), (90, 31, 64), (128, 2, 64)]
)
def test_pairs_are_sorted_into_whole_tiles(gpu, device, monkeypatch, pairs, count, tile) -> None:
    monkeypatch.setattr(gpu("moe"), "_PAIRS", 64)  # several loads
    experts = torch.randint(0, count, (pairs,), dtype=torch.int32)
    listed, tile_expert = (x.cpu() for x in gpu("moe").sort_by_expert(experts.to(device), count, tile))
    tiles = listed.view(-1, tile)
    assert len(tiles) == len(tile_expert) <= len(experts)
    used = int((tile_expert >= 0).sum())
    assert (tile_expert[:used].diff() >= 0).all()
    assert (tiles[used:] == -1).all()
    for expert in range(count):
        pairs = tiles[tile_expert == expert].flatten()
        assert pairs[pairs >= 0].tolist() == torch.where(experts == expert)[0].tolist()
        assert (pairs >= 0).sum() > len(pairs) - tile or len(pairs) == 0


@pytest.mark.parametrize(
    ("tokens", "count", "chosen", "skewed"), [(1, 8, 2, False), (23, 5, 3, True), (40, 3, 1, False), (2, 60, 4, False)]
)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_kernel_computes_what_the_reference_does(gpu, device, tokens, count, chosen, skewed, dtype) -> None:
    parts = problem(tokens, count, chosen, 40, 24, dtype, skewed=skewed)
    ours = gpu("moe").moe(*(x.to(device) for x in parts), count).cpu()
    theirs = by_definition(*parts, count)
    torch.testing.assert_close(ours.double(), theirs, atol=TOLERANCE[dtype], rtol=0)


def test_gpu_rows_have_their_own_bits(gpu, device, row_by_row) -> None:
    x, shares, experts, *weights = (part.to(device) for part in problem(40, 3, 2, 40, 24, torch.float16))
    together = gpu("moe").moe(x, shares, experts, *weights, 3, batch_invariant=True)
    for rows in (slice(0, 1), slice(7, 20)):
        alone = gpu("moe").moe(x[rows], shares[rows], experts[rows], *weights, 3, batch_invariant=True)
        assert torch.equal(alone, together[rows])


QUANTISED = {
    "int4": lambda w: quantize_grouped(w, 4, 32, symmetric=False),
    "int8": lambda w: quantize_grouped(w, 8, w.shape[1], symmetric=True),
    "fp8": quantize_float8,
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_experts(gpu, device, kind) -> None:
    x, shares, experts, gate_up, down = problem(11, 4, 2, 64, 32)
    weights = [QUANTISED[kind](w) for w in (gate_up, down)]
    plain = [w.dequantize() for w in weights]
    expected = by_definition(x, shares, experts, *plain, 4)
    torch.testing.assert_close(moe(x, shares, experts, *weights, 4).double(), expected, atol=1e-5, rtol=0)
    on_device = [w.to(torch.device(device)) for w in weights]
    ours = gpu("moe").moe(*(y.to(device) for y in (x, shares, experts)), *on_device, 4).cpu()
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)


def test_refuses_what_does_not_fit() -> None:
    x, shares, experts, gate_up, down = problem(3, 4, 2, 16, 8)
    with pytest.raises(ValueError, match="do not fit x"):
        moe(x, shares, experts, gate_up, down, 5)
    with pytest.raises(ValueError, match=r"experts torch\.int64"):
        moe(x, shares, experts.long(), gate_up, down, 4)
    with pytest.raises(ValueError, match="5 of 4 experts"):
        route(torch.zeros(2, 4), 5, normalise=True)


def as_blocks(weight: torch.Tensor) -> BlockWeight:
    """Of Q4_0's layout."""
    return BlockWeight(8, 4, weight[:, ::2].to(torch.uint8), weight[:, ::32].half())


def launch(tokens: int, quantised: bool, count: int = 8, width: int = 2048, inner: int = 768) -> None:
    """A few of Qwen3-30B-A3B's experts."""
    from octavo_kernels.moe import gpu

    shares, experts = gpu.route(torch.empty(tokens, count, dtype=torch.bfloat16), 4, normalise=True)
    weights: list = [torch.empty(count * 2 * inner, width), torch.empty(count * width, inner)]
    form = as_blocks if quantised else torch.Tensor.bfloat16
    gpu.moe(torch.empty(tokens, width, dtype=torch.bfloat16), shares, experts, *map(form, weights), count)


LAUNCHES: dict[str, Callable[[], object]] = {
    "decode": lambda: launch(1, quantised=False),
    "chunk": lambda: launch(2000, quantised=False),
    "chunk, quantised": lambda: launch(2000, quantised=True),
}


@pytest.mark.slow
def test_the_kernels_compile_for_a_hopper(compile_launches) -> None:
    found = compile_launches(__file__, 90)
    assert found.keys() == LAUNCHES.keys()
    for name, kernels in found.items():
        assert all(kernel.spilled == 0 for kernel in kernels), name
        products = [kernel for kernel in kernels if kernel.kernel == "_grouped_kernel"]
        assert [kernel.matrix for kernel in products] == ["wgmma" if "chunk" in name else "mma"] * 2, name
