"""The KV cache's memory: copies of blocks."""

from __future__ import annotations

import pytest
import torch

from octavo.execution.kv_storage import KVStorage
from octavo.models.load import load_model
from octavo.source import resolve_source


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn], ids=str)
def test_blocks_are_read_before_any_is_written(tiny_model, dtype: torch.dtype) -> None:
    spec = load_model(resolve_source(str(tiny_model("llama2")))).spec
    kv = KVStorage(spec, 5, 4, dtype, "cpu")
    for layer in kv.layers:
        for tensor in (layer.k, layer.v, *(layer.scales or ())):
            tensor.copy_(torch.arange(1.0, 7.0).view(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape))
    kv.copy([(0, 1), (1, 2), (4, 3)])
    for layer in kv.layers:
        for tensor in (layer.k, layer.v, *(layer.scales or ())):
            assert tensor.float().flatten(1)[:, 0].tolist() == [1, 1, 2, 5, 5, 6]
            assert (tensor.float() == tensor.float().flatten(1)[:, 0].view(-1, *[1] * (tensor.ndim - 1))).all()
