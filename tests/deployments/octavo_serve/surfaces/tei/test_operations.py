"""TEI's /embed, /predict and /similarity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.errors import EngineDead, Overloaded
from octavo.pooled import cosine, vector


def test_embed(ask_pooling: Any, pooler: Any) -> None:
    (alone,) = ask_pooling("/embed", {"inputs": "Hello"}).json()
    assert np.linalg.norm(alone) == pytest.approx(1)
    assert ask_pooling("/embed", {"inputs": ["other", "Hello"], "truncate": True}).json()[1] == alone
    (raw,) = ask_pooling("/embed", {"inputs": "Hello", "normalize": False}).json()
    assert raw == pooler.values(pooler.opened[0]).tolist()
    assert len(ask_pooling("/embed", {"inputs": "Hello", "dimensions": 2}).json()[0]) == 2
    ask_pooling("/embed", {"inputs": "Hello", "prompt_name": "query", "model": "tiny"})
    assert pooler.texts()[-1] == "ask: Hello"
    long = "word " * 100
    ids = pooler.tokenizer.encode(long)
    for direction, kept in (("Left", ids[-64:]), ("right", ids[:64])):
        ask_pooling("/embed", {"inputs": long, "truncate": True, "truncation_direction": direction})
        assert pooler.opened[-1].prompt_token_ids == kept


def test_many_vectors(ask_pooling: Any, pooler: Any) -> None:
    texts = [f"text {number}" for number in range(1500)]
    many = ask_pooling("/embed", {"inputs": texts}).json()
    assert many[1499] == ask_pooling("/embed", {"inputs": texts[1499]}).json()[0]


def test_predict(ask_pooling: Any, pooler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooler.tokenizer, "has_types", True)
    pooler.becomes("classify", labels=("good", "bad"), activation="softmax")
    alone = ask_pooling("/predict", {"inputs": "Hello"}).json()
    assert [one["label"] for one in alone] in (["good", "bad"], ["bad", "good"])
    assert alone[0]["score"] >= alone[1]["score"]
    assert ask_pooling("/predict", {"inputs": [["Hello"], ["a", "b"]]}).json()[0] == alone
    pair = ask_pooling("/predict", {"inputs": ["a", "b"]}).json()
    assert pooler.opened[-1].pooling.second == len(pooler.tokenizer.encode("a"))
    assert ask_pooling("/predict", {"inputs": [["a", "b"]]}).json() == [pair]
    pooler.becomes("classify", labels=())
    assert ask_pooling("/predict", {"inputs": "Hello", "raw_scores": True}).json() == []


def test_similarity(ask_pooling: Any, pooler: Any) -> None:
    inputs = {"source_sentence": "a", "sentences": ["b", "a"]}
    told = ask_pooling("/similarity", {"inputs": inputs, "parameters": {"prompt_name": "query"}}).json()
    assert pooler.texts() == ["ask: a", "ask: b"]
    first, second = (vector(pooler.values(r).tobytes(), pooler.info.pooling) for r in pooler.opened)
    assert told == [cosine(first, second), pytest.approx(1)]


@pytest.mark.parametrize(
    ("path", "given", "sentence"),
    [
        ("/embed", {"inputs": []}, "inputs must not be empty"),
        ("/embed", {"inputs": ["a", ""]}, "inputs[1] must not be an empty text"),
        ("/embed", {"inputs": "word " * 100}, "inputs has "),
        ("/embed_all", {"inputs": "a"}, "vectors of single tokens are not made here"),
        ("/predict", {"inputs": "a"}, "tiny cannot score and classify"),
        ("/predict", {"inputs": ["a", "b", "c"]}, "inputs must be a text, a list of two texts"),
        ("/predict", {"inputs": [["a"], "b"]}, "inputs must be a text, a list of two texts"),
        ("/predict", {"inputs": []}, "inputs must not be empty"),
        ("/predict", {"inputs": 1}, "inputs must be a text, a list of two texts"),
        ("/predict", {"inputs": [["a"]] * 10_001}, "inputs must be at most 10000 texts"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b", ""]}}, "inputs.sentences[1] must not"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "inputs.sentences must not be empty"),
    ],
)
def test_what_is_refused(ask_pooling: Any, pooler: Any, path: str, given: Any, sentence: str) -> None:
    refused = ask_pooling(path, given)
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    assert refused.json()["error"].startswith(sentence), refused.text
    assert pooler.opened == []


def test_errors_of_the_server(ask_pooling: Any, pooler: Any) -> None:
    pooler.full = Overloaded("full", 1.0)
    assert ask_pooling("/embed", {"inputs": "a"}).json() == {"error": "full", "error_type": "Overloaded"}
    pooler.full, pooler.error = None, (pooler.tokenizer.encode("a")[0], EngineDead("gone"))
    assert ask_pooling("/embed", {"inputs": "a"}).json() == {"error": "gone", "error_type": "Unhealthy"}
