"""vLLM's /score."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.pooled import cosine, vector


def test_one_beside_many_and_many_beside_as_many(ask_pooling: Any, pooler: Any) -> None:
    told = ask_pooling("/score", {"model": "tiny", "text_1": "a", "text_2": ["b", "c"]}).json()
    found = [vector(pooler.values(request).tobytes(), pooler.info.pooling) for request in pooler.opened]
    vectors = dict(zip(pooler.texts(), found, strict=True))
    assert [one["score"] for one in told["data"]] == [cosine(vectors["a"], vectors[text]) for text in "bc"]
    assert [(one["index"], one["object"]) for one in told["data"]] == [(0, "score"), (1, "score")]
    assert (told["object"], told["id"][:6], told["usage"]["prompt_tokens"]) == ("list", "score-", 3)
    for first, second in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")):
        same = ask_pooling("/v1/score", {first: ["a", "a"], second: ["b", "c"]}).json()
        assert same["data"] == told["data"]
    assert ask_pooling("/score", {"text_1": "a", "text_2": "b"}).json()["data"] == told["data"][:1]


def test_a_heads_own_scores(ask_pooling: Any, pooler: Any) -> None:
    pooler.becomes("classify", labels=("best",), activation="sigmoid")
    asked = {"text_1": "a", "text_2": ["b"]}
    raw = ask_pooling("/score", {**asked, "use_activation": False}).json()["data"][0]["score"]
    assert raw == float(pooler.values(pooler.opened[0])[0])
    assert ask_pooling("/score", {**asked, "activation": False}).json()["data"][0]["score"] == raw
    assert 0 < ask_pooling("/score", asked).json()["data"][0]["score"] < 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "send either text_1 and text_2, or queries and documents"),
        ({"text_1": "a", "documents": "b"}, "send either text_1 and text_2"),
        ({"text_1": "a"}, "field 'text_2' is required"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_1 has 2 texts and text_2 1: send one, or as many"),
        ({"text_1": "a", "text_2": []}, "text_2 must not be empty"),
        ({"text_1": "a", "text_2": ["b", "word " * 100]}, "text_2[1] has "),
        ({"text_1": "a", "text_2": ["b", ""]}, "text_2[1] must not be an empty text"),
    ],
)
def test_what_is_refused(ask_pooling: Any, pooler: Any, given: Any, sentence: str) -> None:
    refused = ask_pooling("/score", given)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(sentence), refused.text
    assert pooler.opened == []
