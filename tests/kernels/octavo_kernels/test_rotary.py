"""Rotary embedding against a rotation in the complex plane, and the Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels.rotary import reference, rotary_

TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
# tokens, query heads, KV heads, head size, rotated part of it
SHAPES = [
    (1, 1, 1, 2, 2),
    (1, 9, 3, 64, 64),
    (7, 7, 1, 80, 80),
    (5, 8, 2, 96, 24),
    (3, 4, 4, 256, 256),
    (17, 3, 3, 6, 6),
]


def table(rot_dim: int, device: str = "cpu") -> torch.Tensor:
    """[50, rot_dim]: cosines, then sines."""
    angles = torch.arange(50.0)[:, None] * 10000 ** (-torch.arange(0, rot_dim, 2) / rot_dim)
    return torch.cat((angles.cos(), angles.sin()), -1).to(device)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """q and k as views of one fused projection, positions and table."""
    tokens, q_heads, k_heads, dim, rot_dim = shape
    fused = torch.randn(tokens, (q_heads + 2 * k_heads) * dim).to(device, dtype)
    q = fused[:, : q_heads * dim].view(tokens, q_heads, dim)
    k = fused[:, q_heads * dim : (q_heads + k_heads) * dim].view(tokens, k_heads, dim)
    return q, k, torch.randint(0, 50, (tokens,), device=device), table(rot_dim, device)


def turned(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    half = cos_sin.shape[1] // 2
    wide, angles = x.double(), cos_sin[positions].double()
    number = torch.complex(wide[..., :half], wide[..., half : 2 * half])
    number = number * torch.complex(angles[:, None, :half], angles[:, None, half:])
    return torch.cat((number.real, number.imag, wide[..., 2 * half :]), -1).to(x.dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_turns_pairs_in_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, positions, cos_sin = inputs(shape, dtype)
    expected = [turned(x, positions, cos_sin) for x in (q, k)]
    rotary_(q, k, positions, cos_sin)
    torch.testing.assert_close([q, k], expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_is_the_rotation_of_hugging_face() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k, positions, cos_sin = inputs((7, 4, 2, 64, 64), torch.float32)
    cos, sin = (half.repeat(1, 2)[None] for half in cos_sin[positions].chunk(2, -1))
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    rotary_(q, k, positions, cos_sin)
    torch.testing.assert_close([q, k], [x[0].transpose(0, 1) for x in expected], atol=1e-6, rtol=1e-6)


def test_leaves_the_values_beside_it_alone() -> None:
    fused = torch.randn(3, 4, 8)
    before = fused.clone()
    rotary_(fused[:, :2], fused[:, 2:3], torch.tensor([1, 2, 3]), table(6))
    assert torch.equal(fused[:, 3], before[:, 3])
    assert torch.equal(fused[..., 6:], before[..., 6:])
    assert not torch.equal(fused[:, :3, :6], before[:, :3, :6])


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_equals_reference(gpu, device: str, shape: tuple[int, ...], dtype: torch.dtype, index_type) -> None:
    q, k, positions, cos_sin = inputs(shape, dtype, device)
    expected = q.clone(), k.clone()
    reference.rotary_(*expected, positions, cos_sin)
    gpu("rotary").rotary_(q, k, positions.to(index_type), cos_sin)
    torch.testing.assert_close((q, k), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(3, 1, 6)}, r"k \[T, Hk, D\]"),
        ({"k": torch.zeros(2, 1, 8)}, r"k \[T, Hk, D\]"),
        ({"k": torch.zeros(3, 1, 8).half()}, "k is torch.float16"),
        ({"k": torch.zeros(3, 1, 16)[..., ::2]}, "contiguous"),
        ({"positions": torch.zeros(2, dtype=torch.int64)}, r"positions must be \[3\]"),
        ({"cos_sin": torch.zeros(5, 10)}, "at most 8"),
        ({"cos_sin": torch.zeros(5, 3)}, "even"),
        ({"cos_sin": torch.zeros(5, 8).half()}, "float32"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, torch.Tensor], message: str) -> None:
    fits = {
        "q": torch.zeros(3, 2, 8),
        "k": torch.zeros(3, 1, 8),
        "positions": torch.zeros(3, dtype=torch.int64),
        "cos_sin": torch.zeros(5, 8),
    }
    with pytest.raises(ValueError, match=message):
        rotary_(**(fits | change))
