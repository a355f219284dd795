"""What needs a CUDA device; `.ci/gpu` runs it, and the Triton tests of `tests/kernels`, which compile there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from octavo import LLM


@pytest.fixture(autouse=True)
def _cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def gpu_llm(tiny_model) -> Iterator[Callable[..., LLM]]:
    """`gpu_llm(name, **settings)`: a tiny model on the GPU."""
    opened: list[LLM] = []

    def get(name: str, **settings: Any) -> LLM:
        settings = {"device": "cuda", "dtype": "float32", "kv_cache_bytes": 2**21, "progress": False, **settings}
        opened.append(LLM(str(tiny_model(name)), **settings))
        return opened[-1]

    yield get
    for llm in opened:
        llm.close()
