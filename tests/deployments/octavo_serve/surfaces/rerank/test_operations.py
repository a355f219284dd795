"""/rerank in its four dialects, over a model whose scores depend on the token ids alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

DOCUMENTS = ["Paris is a city.", "Bread is made of flour.", "The capital is Paris."]
ASKED = {"query": "capital?", "documents": DOCUMENTS}


@pytest.fixture
def classifier(pooler: Any) -> Any:
    pooler.becomes("classify", labels=("best",), activation="sigmoid")
    return pooler


def expected(pooler: Any) -> list[float]:
    """Of what ran, in its order."""
    return [float(1 / (1 + np.exp(-pooler.values(request).astype(float)[0]))) for request in pooler.opened]


def test_a_head_reads_query_and_document_together(
    ask_pooling: Any, classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier.tokenizer, "has_types", True)
    told = ask_pooling("/v1/rerank", {"model": "tiny", **ASKED}).json()
    scores = expected(classifier)
    best = sorted(range(3), key=lambda index: -scores[index])
    assert [one["index"] for one in told["results"]] == best
    assert [one["relevance_score"] for one in told["results"]] == pytest.approx([scores[i] for i in best])
    assert [one["document"]["text"] for one in told["results"]] == [DOCUMENTS[i] for i in best]
    assert classifier.texts() == [f"capital?{document}" for document in DOCUMENTS]
    query = len(classifier.tokenizer.encode("capital?"))
    kinds = {(one.pooling.task, one.pooling.second) for one in classifier.opened}
    assert kinds == {("classify", query)}
    tokens = sum(len(one.prompt_token_ids) for one in classifier.opened)
    assert told["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert told["meta"]["api_version"] == {"version": "1"}
    assert told["meta"]["billed_units"] == {"search_units": 1}


def test_what_each_dialect_repeats(ask_pooling: Any, classifier: Any) -> None:
    second = ask_pooling("/v2/rerank", {**ASKED, "top_n": 2}).json()
    assert [sorted(one) for one in second["results"]] == [["index", "relevance_score"]] * 2
    assert second["meta"]["api_version"] == {"version": "2"}
    for path, asked, has in (
        ("/v2/rerank", {"return_documents": True}, True),
        ("/v1/rerank", {"return_documents": False}, False),
        ("/rerank", {}, True),
        ("/rerank", {"top_n": 0, "documents": [{"text": text} for text in DOCUMENTS]}, True),
    ):
        results = ask_pooling(path, {**ASKED, **asked}).json()["results"]
        assert [("document" in one) for one in results] == [has] * 3


def test_teis_form(ask_pooling: Any, classifier: Any) -> None:
    asked = {"query": "capital?", "texts": DOCUMENTS}
    told = ask_pooling("/rerank", asked).json()
    scores = expected(classifier)
    assert [(one["index"], one["score"]) for one in told] == sorted(
        ((i, pytest.approx(score)) for i, score in enumerate(scores)), key=lambda pair: -scores[pair[0]]
    )
    raw = ask_pooling("/rerank", {**asked, "raw_scores": True, "return_text": True}).json()
    assert {one["text"]: one["score"] for one in raw} == {
        text: pytest.approx(float(classifier.values(request)[0]))
        for text, request in zip(DOCUMENTS, classifier.opened[:3], strict=True)
    }


def test_long_documents_are_cut_and_the_query_never(ask_pooling: Any, classifier: Any) -> None:
    encode, long = classifier.tokenizer.encode, "word " * 200
    query = encode("capital?")
    for asked, kept in (({}, 64 - len(query)), ({"max_tokens_per_doc": 5}, 5)):
        assert ask_pooling("/v2/rerank", {**ASKED, "documents": [long], **asked}).status_code == 200
        assert classifier.opened[-1].prompt_token_ids == query + encode(long)[:kept]
    tei = {"query": "capital?", "texts": ["short", long]}
    assert ask_pooling("/rerank", {**tei, "truncate": True, "truncation_direction": "Left"}).status_code == 200
    assert classifier.opened[-1].prompt_token_ids == query + encode(long)[-(64 - len(query)) :]
    count = len(classifier.opened)
    for path, body, name in (
        ("/rerank", tei, "texts[1] has"),
        ("/v2/rerank", {**ASKED, "query": long}, "documents[0] has"),
    ):
        refused = ask_pooling(path, body)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith(name)
    assert len(classifier.opened) == count


@pytest.mark.parametrize(
    ("path", "given", "sentence"),
    [
        ("/v1/rerank", {"query": "a"}, "field 'documents' is required"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query must not be an empty text"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents must not be empty"),
        (
            "/v1/rerank",
            {"query": "a", "documents": [{"title": "b"}]},
            "documents must be texts, or objects with a text",
        ),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 10_001}, "documents must be at most 10000"),
        ("/v1/rerank", {"query": "a", "texts": ["a"]}, "unknown field 'texts'"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields.0 must be 'text'"),
        ("/rerank", {"query": "a", "documents": ["a"], "texts": ["a"]}, "send either documents or texts"),
        ("/rerank", {"query": "a", "texts": []}, "texts must not be empty"),
    ],
)
def test_what_is_refused(ask_pooling: Any, classifier: Any, path: str, given: Any, sentence: str) -> None:
    refused = ask_pooling(path, given)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(sentence)
    assert classifier.opened == []


def test_models_that_cannot(ask_pooling: Any, pooler: Any) -> None:
    pooler.becomes("classify", labels=("good", "bad"))
    assert "this model has 2 classes" in ask_pooling("/rerank", ASKED).json()["error"]["message"]
    pooler.becomes("generate")
    assert "tiny cannot make embeddings" in ask_pooling("/rerank", ASKED).json()["error"]["message"]


def test_a_thousand_documents(ask_pooling: Any, classifier: Any) -> None:
    documents = [f"document {number}" for number in range(1000)]
    told = ask_pooling("/v1/rerank", {"query": "a", "documents": documents}).json()
    assert sorted(one["index"] for one in told["results"]) == list(range(1000))
    assert all(one["document"]["text"] == documents[one["index"]] for one in told["results"])
    scores = [one["relevance_score"] for one in told["results"]]
    assert scores == sorted(scores, reverse=True)
