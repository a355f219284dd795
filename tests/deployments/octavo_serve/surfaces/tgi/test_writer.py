"""TGI's answers and events hold what /v1/completions says of the same request: with a script, and a real engine."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from octavo.errors import EngineDead, OctavoError
from octavo_serve.api.access import Caller, Keys, KnownKey, Rules
from octavo_serve.api.bounds import Limits

TEXT = "Paris 🙂."


def events(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, rest = answer.text.split("\n\n")
    assert rest == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts]


@pytest.fixture
def long(service: Any, client: Any) -> None:
    client.texts = [TEXT]
    service.limits = Limits()


def test_an_answer(post: Any, long: Any) -> None:
    assert post("/generate", {"inputs": "Hi"}).json() == {"generated_text": TEXT}
    assert post("/", {"inputs": "Hi"}).json() == [{"generated_text": "Hi" + TEXT}]
    assert post("/", {"inputs": "Hi", "parameters": {"return_full_text": False}}).json() == [{"generated_text": TEXT}]
    assert post("/models/tiny", {"inputs": "Hi"}).json() == [{"generated_text": "Hi" + TEXT}]


def test_details(post: Any, long: Any) -> None:
    asked = {"details": True, "decoder_input_details": True, "top_n_tokens": 2, "do_sample": True, "seed": 7}
    details = post("/generate", {"inputs": "Hi there", "parameters": asked}).json()["details"]
    assert "".join(token["text"] for token in details["tokens"] if not token["special"]) == TEXT
    assert (details["finish_reason"], details["seed"]) == ("eos_token", 7)
    assert details["generated_tokens"] == len(details["tokens"]) == len(details["top_tokens"])
    assert details["tokens"][-1] | {"id": 0} == {"id": 0, "text": "<|im_end|>", "logprob": -0.5, "special": True}
    first, *others = details["prefill"]
    assert (first["text"], first["logprob"]) == ("Hi", None)
    assert [token["logprob"] for token in others] == [-0.5] * len(others)
    assert "best_of_sequences" not in details
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert [one["logprob"] for one in top] == [-0.5, -1.5]
        assert top[0]["id"] == token["id"]
    assert "details" not in post("/generate", {"inputs": "Hi", "parameters": {"top_n_tokens": 2}}).json()


def test_a_stream_is_a_token_an_event(post: Any, long: Any) -> None:
    body = {"inputs": "Hi", "parameters": {"details": True, "top_n_tokens": 1, "return_full_text": True}}
    found = events(post("/generate_stream", body))
    assert [event["index"] for event in found] == list(range(1, len(found) + 1))
    assert "".join(event["token"]["text"] for event in found if not event["token"]["special"]) == TEXT
    assert [event["generated_text"] for event in found] == [None] * (len(found) - 1) + ["Hi" + TEXT]
    assert all(event["details"] is None for event in found[:-1])
    assert found[-1]["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": len(found),
        "seed": None,
        "input_length": 1,
    }
    assert all(len(event["top_tokens"]) == 1 for event in found)
    plain = events(post("/", {"inputs": "Hi", "stream": True, "parameters": {}}))
    assert [event["token"] for event in plain] == [event["token"] for event in found]
    assert (plain[-1]["details"], plain[-1]["generated_text"]) == (None, "Hi" + TEXT)


@pytest.mark.parametrize(
    ("parameters", "text", "reason"),
    [
        ({"max_new_tokens": 1}, "Paris", "length"),
        ({"stop": ["ari"]}, "Pari", "stop_sequence"),
        ({}, TEXT, "eos_token"),
    ],
)
def test_how_a_text_ends(post: Any, long: Any, parameters: dict[str, Any], text: str, reason: str) -> None:
    body = {"inputs": "Hi", "parameters": parameters | {"details": True}}
    whole, *others = post("/generate", body).json(), events(post("/generate_stream", body))
    (streamed,) = others
    assert (whole["generated_text"], whole["details"]["finish_reason"]) == (text, reason)
    assert (streamed[-1]["generated_text"], streamed[-1]["details"]["finish_reason"]) == (text, reason)
    shown = [event["token"] for event in streamed]
    assert shown == whole["details"]["tokens"]
    assert "".join(token["text"] for token in shown if not token["special"]) == text


def test_the_best_of_several(post: Any, client: Any) -> None:
    client.texts = ["Paris.", "Paris."]  # the second has half the log probability
    asked = {"best_of": 2, "do_sample": True, "details": True, "return_full_text": True, "decoder_input_details": True}
    answer = post("/generate", {"inputs": "Hi", "parameters": asked}).json()
    (other,) = answer["details"]["best_of_sequences"]
    assert answer["generated_text"] == other["generated_text"] == "HiParis."
    assert other["tokens"] == answer["details"]["tokens"]
    assert [len(of["prefill"]) for of in (answer["details"], other)] == [1, 1]
    assert client.opened[0].params.num_sequences == 2
    assert answer["details"]["seed"] == client.opened[0].seed


def test_truncate_reads_the_end(post: Any, client: Any, tokenizer: Any) -> None:
    text = "one two three four five six"
    ids = tokenizer.encode(text)
    for count in (2, len(ids), len(ids) + 5):
        post("/generate", {"inputs": text, "parameters": {"truncate": count}})
        assert client.opened[-1].prompt_token_ids == ids[-count:]
    long = "a " * 300  # more than the context holds
    assert post("/generate", {"inputs": long}).status_code == 422
    assert post("/generate", {"inputs": long, "parameters": {"truncate": 8, "max_new_tokens": 9}}).status_code == 200


def test_errors(post: Any, client: Any) -> None:
    body: dict[str, Any] = {"inputs": "Hi", "parameters": {"max_new_tokens": 999}}
    for path in ("/generate", "/", "/models/tiny"):
        wrong = post(path, body)
        assert (wrong.status_code, wrong.json()["error_type"]) == (422, "validation")
        assert "max_new_tokens asks for 999" in wrong.json()["error"]
    (streamed,) = events(post("/generate_stream", body))  # clients read errors of streams from events alone
    assert streamed == wrong.json()
    assert post("/generate_stream", {"inputs": ""}).status_code == 422
    unknown = post("/models/other/one", {"inputs": "Hi"})
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "not_found")
    assert post("/generate", {"inputs": "Hi", "model": "other"}).status_code == 404
    two = post("/models/tiny", {"inputs": "Hi", "model": "other"})
    assert (two.status_code, two.json()["error"]) == (422, "the path names the model 'tiny', the body 'other'")
    client.error = EngineDead("gone")
    assert post("/generate", {"inputs": "Hi"}).json() == {"error": "gone", "error_type": "generation"}
    client.error, client.late_error, client.fail_after = None, OctavoError("not a number"), 1
    *_, last = events(post("/generate_stream", {"inputs": "Hi"}))
    assert last == {"error": "not a number", "error_type": "generation"}


def test_a_key_is_needed_where_there_are_keys(post: Any) -> None:
    """Also for / itself, whose page needs none."""
    post.access.rules = Rules(Keys([KnownKey(Caller("alice"), sha256(b"sk").digest())]))
    for path in ("/", "/generate", "/generate_stream", "/models/tiny"):
        refused = post(path, {"inputs": "Hi"})
        assert (refused.status_code, refused.json()["error_type"]) == (401, "unauthorized")
        assert post(path, {"inputs": "Hi"}, headers={"authorization": "Bearer sk"}).status_code == 200


def test_the_same_as_completions(in_process: Any, post: Any) -> None:
    """A model that writes random bytes: half characters, and log probabilities that nothing but it has."""
    post.service = in_process.service
    drawn = {"temperature": 0.9, "top_k": 200, "seed": 3}
    body = {"prompt": "Hello", "max_tokens": 40, "logprobs": 3, "min_p": 0, "return_token_ids": True} | drawn
    (choice,) = post("/v1/completions", body | {"ignore_eos": False}).json()["choices"]
    asked = drawn | {"max_new_tokens": 40, "details": True, "top_n_tokens": 3}
    answer = post("/generate", {"inputs": "Hello", "parameters": asked}).json()
    tokens = answer["details"]["tokens"]
    assert answer["generated_text"] == choice["text"]
    assert [token["id"] for token in tokens] == choice["token_ids"]
    assert [token["logprob"] for token in tokens] == choice["logprobs"]["token_logprobs"]
    for top, others in zip(answer["details"]["top_tokens"], choice["logprobs"]["top_logprobs"], strict=True):
        assert [token["logprob"] for token in top] == sorted(others.values(), reverse=True)[:3]
    streamed = events(post("/generate_stream", {"inputs": "Hello", "parameters": asked}))
    assert [event["token"] for event in streamed] == tokens
    assert [event["top_tokens"] for event in streamed] == answer["details"]["top_tokens"]
    assert streamed[-1]["generated_text"] == choice["text"]


def test_a_text_that_is_empty_has_a_last_event(in_process: Any, post: Any) -> None:
    post.service = in_process.service
    body = {"inputs": "Hello", "parameters": {"grammar": {"type": "regex", "value": "a{0}"}, "details": True}}
    found = events(post("/generate_stream", body))
    assert found[-1]["generated_text"] == ""
    assert found[-1]["token"]["special"]
