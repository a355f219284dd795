"""Cohere's /v2/embed."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest


def test_the_same_vectors_in_its_words(ask_pooling: Any, pooler: Any) -> None:
    asked = {
        "model": "tiny",
        "texts": ["Hello", "there"],
        "input_type": "search_document",
        "embedding_types": ["float"],
    }
    told = ask_pooling("/v2/embed", asked).json()
    openai = ask_pooling("/v1/embeddings", {"input": ["Hello", "there"]}).json()
    assert told["embeddings"] == {"float": [one["embedding"] for one in openai["data"]]}
    assert (told["texts"], told["response_type"]) == (["Hello", "there"], "embeddings_by_type")
    packed = ask_pooling("/v2/embed", {**asked, "embedding_types": ["base64"], "output_dimension": 4}).json()
    assert np.frombuffer(base64.b64decode(packed["embeddings"]["base64"][0]), "<f4").shape == (4,)
    ask_pooling("/v2/embed", {**asked, "input_type": "search_query"})
    assert pooler.texts()[-2:] == ["ask: Hello", "ask: there"]


def test_long_texts_are_cut_unless_they_must_not_be(ask_pooling: Any, pooler: Any) -> None:
    long = "word " * 100
    ids = pooler.tokenizer.encode(long)
    for asked, kept in (({}, ids[:64]), ({"truncate": "START"}, ids[-64:]), ({"max_tokens": 3}, ids[:3])):
        assert ask_pooling("/v2/embed", {"texts": [long], **asked}).status_code == 200
        assert pooler.opened[-1].prompt_token_ids == kept


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"texts": ["word " * 100], "truncate": "NONE"}, "texts[0] has "),
        ({"texts": []}, "texts must not be empty"),
        ({"texts": ["a", ""]}, "texts[1] must not be an empty text"),
        ({"texts": ["a"], "embedding_types": ["int8"]}, "embedding_types.0 must be 'float' or 'base64'"),
        ({"texts": ["a"], "images": ["data:"]}, "only texts are embedded here"),
    ],
)
def test_what_is_refused(ask_pooling: Any, given: Any, sentence: str) -> None:
    refused = ask_pooling("/v2/embed", given)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(sentence)
