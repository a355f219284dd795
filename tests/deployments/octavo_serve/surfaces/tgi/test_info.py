"""/info tells what a model takes."""

from __future__ import annotations

from typing import Any


def test_a_model(post: Any) -> None:
    told = post("/info", method="GET").json()
    assert (told["model_id"], told["max_input_tokens"], told["max_total_tokens"]) == ("tiny", 255, 256)
    assert told["max_best_of"] == post.service.limits.max_n
    assert post("/info?model=tiny", method="GET").json() == told
    unknown = post("/info?model=other", method="GET")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "not_found")


def test_a_model_that_writes_no_text(ask_pooling: Any, pooler: Any) -> None:
    told = ask_pooling("/info", method="GET").json()
    assert told["model_type"] == {"embedding": {"pooling": "last"}}
    assert (told["max_input_length"], told["max_client_batch_size"]) == (64, 10_000)
    for labels, kind in ((("best",), "reranker"), (("good", "bad"), "classifier")):
        pooler.becomes("classify", labels=labels)
        classes = ask_pooling("/info", method="GET").json()["model_type"][kind]
        assert classes["label2id"] == {label: number for number, label in enumerate(labels)}
