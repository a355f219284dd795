"""TEI's path of a model: Hugging Face's clients post all they ask there."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("path", ["/", "/models/tiny"])
def test_what_the_model_does(ask_pooling: Any, pooler: Any, path: str) -> None:
    vectors = ask_pooling("/embed", {"inputs": ["a", "b"]}).json()
    assert ask_pooling(path, {"inputs": ["a", "b"], "normalize": True}).json() == vectors
    inputs = {"source_sentence": "a", "sentences": ["a"]}
    assert ask_pooling(path, {"inputs": inputs, "parameters": {}}).json() == [pytest.approx(1)]
    pooler.becomes("classify", labels=("good", "bad"), activation="softmax")
    ask_pooling.service.models.entries["tiny"].info = pooler.info
    assert {one["label"] for one in ask_pooling(path, {"inputs": "a"}).json()} == {"good", "bad"}


def test_what_is_wrong(ask_pooling: Any) -> None:
    for path, body, sentence in (
        ("/models/tiny", {"inputs": "a", "model": "other"}, "the path names another model than the body"),
        ("/models/tiny", {"inputs": ""}, "inputs must not be an empty text"),
        ("/", {"inputs": "a", "truncat": True}, "unknown field 'truncat': did you mean 'truncate'?"),
        ("/", {}, "field 'inputs' is required"),
    ):
        refused = ask_pooling(path, body)
        assert (refused.status_code, refused.json()["error"]) == (422, sentence)
    assert ask_pooling("/models/other", {"inputs": "a"}).status_code == 404


def test_a_model_that_writes_text_is_tgis(post: Any) -> None:
    assert post("/", {"inputs": "Hello"}).json()[0]["generated_text"].endswith("Paris.")
    assert post("/models/tiny", {"inputs": "Hello", "normalize": True}).status_code == 422
