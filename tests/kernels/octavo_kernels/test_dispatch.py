"""The choice of back ends, and what importing the ops does not need."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from octavo_kernels import dispatch

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch
from octavo_kernels.activation import gelu_mul, silu_mul
from octavo_kernels.fixed_linear import fixed_linear
from octavo_kernels.kv_store import kv_store
from octavo_kernels.paged_attention import PagedBatch, paged_attention
from octavo_kernels.qkv_rope_store import qkv_rope_store
from octavo_kernels.rms_norm import add_rms_norm, rms_norm
from octavo_kernels.rotary import rotary_

batch = PagedBatch.build(torch.tensor([0, 2]), torch.tensor([2]), torch.tensor([[0]]), 4)
q, cache = torch.ones(2, 1, 8), torch.zeros(2, 1, 4, 1, 8)
rotary_(q, q.clone(), batch.positions, torch.ones(4, 8))
kv_store(q, q, *cache, batch.slots)
q = qkv_rope_store(fixed_linear(torch.ones(2, 8), torch.ones(24, 8)), *cache, batch.slots, batch.positions)
x = paged_attention(rms_norm(q, torch.ones(8), 1e-5), *cache, batch, scale=1.0).flatten(1)
x, _ = add_rms_norm(x, x, torch.ones(8), 1e-5)
assert silu_mul(x).shape == gelu_mul(x).shape == (2, 4)
"""


def test_ops_run_on_a_cpu_without_triton() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT_TRITON], check=True)


def test_package_imports_nothing() -> None:
    code = "import sys, octavo_kernels; assert not {'torch', 'triton', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gpu_without_triton_is_said_once(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    dispatch._has_triton.cache_clear()
    assert [dispatch._has_triton(), dispatch._has_triton()] == [False, False]
    assert [str(warning.message)[:23] for warning in recwarn] == ["Triton is not installed"]
    dispatch._has_triton.cache_clear()


def test_cpu_tensors_go_to_the_reference() -> None:
    assert not dispatch.use_gpu(torch.zeros(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_go_to_triton() -> None:
    assert dispatch.use_gpu(torch.zeros(1, device="cuda"))
