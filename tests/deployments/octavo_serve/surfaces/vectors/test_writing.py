"""What answers have in common."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from octavo_serve.api.pooling import Pooled
from octavo_serve.surfaces.vectors.writing import as_list, written


def test_numbers_and_their_bytes() -> None:
    vector = np.array([0.5, -2.0], np.float32)
    assert written(vector, None) == [0.5, -2.0]
    packed: Any = written(vector, "base64")
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == [0.5, -2.0]


def test_a_list(pooling: Any) -> None:
    info = pooling.models.entries["tiny"].info
    told = as_list(Pooled("embd-1", "tiny", info, 5, []), 2, lambda i: i, 1).whole()
    assert (told["id"], told["object"], told["model"], told["data"]) == ("embd-1", "list", "tiny", [0, 1])
    assert told["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
