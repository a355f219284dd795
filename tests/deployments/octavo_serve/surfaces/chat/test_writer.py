"""Chats over a scripted model: what the OpenAI SDKs expect, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest


def test_chat(talk: Any, client: Any) -> None:
    client.cached_tokens = 16
    answer = talk.chat()
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": "Paris.", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    prompt_tokens = len(client.opened[0].prompt_token_ids)
    generated = len(client.tokenizer.encode("Paris.")) + 1  # and the end token
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def test_a_chat_stream_is_a_role_then_deltas_then_the_reason_then_usage(talk: Any) -> None:
    chunks = talk.chat_events(stream_options={"include_usage": True})
    *events, last = chunks
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["usage"] for chunk in events] == [None] * len(events)
    assert (last["choices"], last["usage"]["completion_tokens"] > 0) == ([], True)
    deltas = [chunk["choices"][0]["delta"] for chunk in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Paris."
    assert [chunk["choices"][0]["finish_reason"] for chunk in events] == [None] * (len(events) - 1) + ["stop"]


def test_characters_are_never_cut(talk: Any, client: Any) -> None:
    client.texts = ["Brücke 🌉 橋"]
    contents = [chunk["choices"][0]["delta"].get("content", "") for chunk in talk.chat_events()]
    assert "".join(contents) == "Brücke 🌉 橋"
    assert not any("\ufffd" in content for content in contents)


def test_chat_logprobs_name_each_token(talk: Any, client: Any) -> None:
    content = talk.chat(logprobs=True, top_logprobs=2, max_tokens=2)["choices"][0]["logprobs"]["content"]
    tokens = client.tokenizer.encode("Paris.")[:2]
    assert [bytes(entry["bytes"]) for entry in content] == [client.tokenizer.token_bytes(token) for token in tokens]
    assert [entry["logprob"] for entry in content] == [-0.5, -0.5]
    assert [[top["logprob"] for top in entry["top_logprobs"]] for entry in content] == [[-0.5, -1.5]] * 2
    streamed = talk.chat_events(logprobs=True, top_logprobs=2, max_tokens=2)
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed if chunk["choices"][0]["logprobs"]]
    assert [entry for part in parts for entry in part["content"]] == content


def test_n_choices_come_from_one_request(talk: Any, client: Any) -> None:
    client.texts = ["One.", "Two, three."]
    answer = talk.chat(n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["One.", "Two, three."]
    assert len(client.opened) == 1
    chunks = talk.chat_events(n=2)
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == ["One.", "Two, three."]


def test_a_limit_that_is_too_low_is_called_by_its_name(talk: Any) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(BadRequest, match=f"^{name} must be at least 1") as refused:
            talk.chat(**{name: 0})
        assert refused.value.param == name


def test_max_completion_tokens_wins_and_is_counted(talk: Any, client: Any) -> None:
    client.texts = ["One two three four five six seven."]
    answer = talk.chat(max_tokens=0, max_completion_tokens=5)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    assert talk.chat(max_tokens=1, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_token_ids_of_characters_that_are_not_whole_are_not_lost(talk: Any, client: Any) -> None:
    client.texts = ["Brücke 🌉 橋"]
    chunks = talk.chat_events(return_token_ids=True)
    ids = [token for chunk in chunks for c in chunk["choices"] for token in c.get("token_ids", ())]
    assert ids[:-1] == client.tokenizer.encode("Brücke 🌉 橋")
