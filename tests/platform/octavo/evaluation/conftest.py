"""A text in the public domain (Lewis Carroll, 1865), and a checkpoint with one tensor changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def text() -> Path:
    return Path(__file__).with_name("alice.txt")


@pytest.fixture
def scaled(tmp_path):
    """`scaled(folder, name, factor)` -> the checkpoint with the tensors whose names hold `name` multiplied."""
    from safetensors.torch import load_file, save_file

    def make(folder, name, factor):
        copy = tmp_path / "scaled"
        shutil.copytree(folder, copy)
        tensors = load_file(folder / "model.safetensors")
        changed = [key for key in tensors if name in key]
        assert changed
        save_file(tensors | {key: tensors[key] * factor for key in changed}, copy / "model.safetensors")
        return copy

    return make
