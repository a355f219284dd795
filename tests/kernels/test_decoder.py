"""The ops together: a decoder whose every op runs its Triton kernel, against the same decoder on the references."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from octavo.execution.kv_storage import KVStorage
from octavo.models.decoder import Decoder
from octavo.models.load import load_model
from octavo.models.step_context import StepContext
from octavo.source import resolve_source
from octavo_kernels import dispatch
from octavo_kernels.paged_attention import PagedBatch

BLOCK = 4
TOKENS = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
STEPS = [[(0, 9)], [(9, 10), (0, 6)]]
"""By step, which tokens each of two sequences has: a chunk, then a token beside a chunk. A layer in Triton's
interpreter takes up to a second."""


@pytest.fixture
def kernels(gpu: Callable[[str], ModuleType]) -> Iterator[Callable[[], Counter[str]]]:
    """`kernels()`: from now on every op takes all tensors to its Triton kernel -> how often each has done so."""
    with pytest.MonkeyPatch.context() as patch:

        def switch() -> Counter[str]:
            count: Counter[str] = Counter()

            def triton(reference: Any, *tensors: torch.Tensor, gpu: bool = True, cpu: bool = True) -> Any:
                count.update([reference.__module__.split(".")[1]])
                return dispatch.other(reference, "gpu") if gpu else reference

            for name, module in list(sys.modules.items()):
                if name.startswith("octavo_kernels.") and module is not dispatch:
                    if hasattr(module, "backend"):
                        patch.setattr(module, "backend", triton)
                    if hasattr(module, "use_gpu"):
                        patch.setattr(module, "use_gpu", lambda x: True)
            return count

        yield switch


def run(decoder: Decoder, cache: torch.dtype) -> torch.Tensor:
    """Logits of the two sequences' tokens, step after step."""
    kv = KVStorage(decoder.spec, 16, BLOCK, cache, str(decoder.device))
    tables = np.random.default_rng(0).permutation(16).reshape(2, 8)
    found = []
    for chunks in STEPS:
        starts = np.cumsum([0, *(end - begin for begin, end in chunks)])
        contexts = np.array([end for _, end in chunks])
        layout = starts, contexts, tables[: len(chunks)], BLOCK, decoder.device
        context = StepContext(PagedBatch.build(*layout, decoder.split_keys), kv.layers)
        tokens = torch.cat([TOKENS[s, begin:end] for s, (begin, end) in enumerate(chunks)])
        found.append(decoder.logits(decoder.forward(tokens.to(decoder.device), context)))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("name", "cache", "quantization", "one_order"),
    [
        ("gemma2", torch.float32, None, False),
        ("qwen3", torch.int8, "int8", False),
        ("qwen2_moe", torch.float32, "int8", True),
        ("llama_biases", torch.float8_e4m3fn, None, True),
    ],
)
def test_a_decoder_of_kernels_equals_one_of_references(
    kernels: Callable[[], Counter[str]],
    device: str,
    tiny_model: Callable[[str], Path],
    name: str,
    cache: torch.dtype,
    quantization: str | None,
    one_order: bool,
) -> None:
    source = resolve_source(str(tiny_model(name)))
    theirs, ours = (load_model(source, device=place, quantization=quantization) for place in ("cpu", device))
    if one_order:
        ours.keep_one_order()
    expected = run(theirs, cache)
    count = kernels()
    loose = 2e-4 if cache == torch.float32 else 5e-2  # a rounding may fall to the next code
    torch.testing.assert_close(run(ours, cache).cpu(), expected, atol=loose, rtol=loose)
    assert count["qkv_rope_store"] == count["paged_attention"] == len(STEPS) * len(ours.weights.layers)
    assert count["rms_norm"] > count["paged_attention"]
    assert (count["fixed_linear"] > 0) == one_order
    assert (count["moe"] > 0) == (name == "qwen2_moe")
