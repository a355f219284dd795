"""The example that embeds a Ray Dataset: what its actors do to a batch. The tests do without Ray Data itself."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_data_embed.py"


def test_an_actor_embeds_its_batches(tiny_encoder: Callable[..., Path]) -> None:
    engine = runpy.run_path(str(EXAMPLE))["Engine"](str(tiny_encoder("bert")), 1)
    batch = engine({"text": np.array(["hello", "a longer text than that", "hello"]), "id": np.arange(3)})
    vectors = batch["embedding"]
    assert list(batch) == ["text", "id", "embedding"]
    assert (vectors.shape, vectors.dtype) == ((3, 64), np.float32)
    assert (vectors[0] == vectors[2]).all()
    assert (engine({"text": np.array(["hello"])})["embedding"][0] == vectors[0]).all()
