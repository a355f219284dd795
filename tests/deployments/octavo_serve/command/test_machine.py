"""What this machine has, without loading torch."""

from __future__ import annotations

import pytest
import torch

from octavo_serve.command import machine


def test_torchs_own_words_agree() -> None:
    assert machine.torch_cuda() == torch.version.cuda
    assert machine.version("torch") == torch.__version__
    assert machine.version("no-such-package") is None


def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert machine.gpus() == []


def test_memory_is_in_bytes() -> None:
    found = machine.memory_bytes()
    assert found is not None
    assert 2**26 < found[1] <= found[0] < 2**50
