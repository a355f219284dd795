"""vLLM's /classify and /pooling."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from octavo_serve.surfaces.scoring.classify import label_of


def test_classes(ask_pooling: Any, pooler: Any) -> None:
    pooler.becomes("classify", labels=("good", "bad", "worse"), activation="softmax")
    told = ask_pooling("/classify", {"model": "tiny", "input": ["a", "b"]}).json()
    for one, request in zip(told["data"], pooler.opened, strict=True):
        logits = pooler.values(request).astype(float)
        assert one["probs"] == pytest.approx(np.exp(logits) / np.exp(logits).sum())
        assert one["label"] == ("good", "bad", "worse")[int(logits.argmax())]
        assert one["num_classes"] == 3
    assert (told["object"], told["id"][:9]) == ("list", "classify-")
    raw = ask_pooling("/classify", {"input": "a", "use_activation": False}).json()["data"][0]["probs"]
    assert raw == pooler.values(pooler.opened[0]).tolist()
    assert label_of((), 0) is None


def test_what_was_pooled(ask_pooling: Any, pooler: Any) -> None:
    whole = ask_pooling("/pooling", {"input": ["Hello"]}).json()
    assert whole["data"][0]["object"] == "pooling"
    assert np.linalg.norm(whole["data"][0]["data"]) == pytest.approx(1)
    for asked in ({"normalize": False}, {"use_activation": False, "task": "embed"}):
        raw = ask_pooling("/pooling", {"input": "Hello", **asked}).json()["data"][0]["data"]
        assert raw == pooler.values(pooler.opened[0]).tolist()
    packed = ask_pooling("/pooling", {"input": "Hello", "encoding_format": "base64", "dimensions": 2}).json()
    assert len(base64.b64decode(packed["data"][0]["data"])) == 8
    pooler.becomes("classify", labels=("good", "bad"))
    assert len(ask_pooling("/pooling", {"input": "Hello"}).json()["data"][0]["data"]) == 2


def test_what_is_not_done(ask_pooling: Any, pooler: Any) -> None:
    for path, asked, sentence in (
        ("/classify", {"input": "a"}, "tiny cannot score and classify with its head: it can make embeddings"),
        ("/pooling", {"input": "a", "task": "token_embed"}, 'task must be "embed" or "classify"'),
        ("/pooling", {"input": "a", "task": "classify"}, "tiny cannot score and classify"),
        ("/pooling", {"input": "a", "dimensions": 3}, "dimensions must be one that this model was trained for: 2, 4"),
        ("/classify", {}, "field 'input' is required"),
    ):
        refused = ask_pooling(path, asked)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith(sentence), refused.text
    assert pooler.opened == []
