"""Over a real engine: a text's vector is the same alone and beside others, cached and not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def tiny(in_process: Any, ask_pooling: Any) -> Any:
    ask_pooling.service = in_process.service
    return ask_pooling


TEXTS = [f"{'word ' * (number * 7 % 40)}number {number}" for number in range(40)]


def test_alone_and_beside_others(tiny: Any) -> None:
    def vectors(**asked: Any) -> list[list[float]]:
        answer = tiny("/v1/embeddings", asked)
        assert answer.status_code == 200, answer.text
        return [one["embedding"] for one in answer.json()["data"]]

    together = vectors(input=TEXTS)
    alone = [vectors(input=text)[0] for text in TEXTS[::8]]  # torch's sums depend on what else is in a step
    assert np.abs(np.subtract(alone, together[::8])).max() < 1e-6
    assert np.abs(np.subtract(vectors(input=TEXTS[::-1]), together[::-1])).max() < 1e-6
    assert np.linalg.norm(together, axis=1) == pytest.approx(1)
    (alike,) = tiny("/score", {"text_1": TEXTS[3], "text_2": TEXTS[3]}).json()["data"]
    assert alike["score"] == pytest.approx(1)
    order = tiny("/v1/rerank", {"query": TEXTS[5], "documents": TEXTS}).json()["results"]
    assert order[0]["index"] == 5


def test_the_same_model_still_writes(tiny: Any) -> None:
    assert tiny("/v1/completions", {"prompt": "Hello", "max_tokens": 3}).status_code == 200
    assert tiny("/v1/models", method="GET").json()["data"][0]["tasks"] == ["generate", "embed"]
