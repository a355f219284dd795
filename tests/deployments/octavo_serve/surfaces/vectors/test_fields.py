"""Fields that all of them have."""

from __future__ import annotations

from octavo_serve.api.body import parse
from octavo_serve.api.texts import Cut
from octavo_serve.surfaces.vectors.fields import VectorBody, usage


def test_who_asks_what() -> None:
    sent = {"truncate_prompt_tokens": 7, "truncation_side": "left", "user": "u", "priority": 2, "request_id": "r"}
    asking = parse(VectorBody, sent).asking("embd", "embeddings", "input")
    assert (asking.cut, asking.kind) == (Cut(most=7, keeps_end=True), "embd-r")
    assert (asking.session, asking.priority, asking.add_special_tokens) == ("u", 2, True)
    assert not parse(VectorBody, {"add_special_tokens": False}).asking("a", "embeddings", "b").add_special_tokens
    assert usage(3) == {"prompt_tokens": 3, "total_tokens": 3}


def test_ten_thousand_texts_pass_the_bounds_of_a_body() -> None:
    from octavo_serve.api.bounds import MAX_TEXTS, BodyBounds
    from octavo_serve.surfaces.embeddings.schemas import EmbeddingRequest

    for text in (b'"' + b"word [1], " * 150 + b'"', b"[" + b"12345," * 250 + b"1]"):
        body = b'{"input":[' + b",".join([text] * MAX_TEXTS) + b"]}"
        bounds = BodyBounds(256, MAX_TEXTS)
        assert len(body) <= bounds.num_bytes
        read = parse(EmbeddingRequest, body, bounds).input
        assert read is not None
        assert len(read) == MAX_TEXTS
