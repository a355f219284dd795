"""Completions over a scripted model: what the OpenAI SDKs and evaluation harnesses expect, field by field."""

from __future__ import annotations

from typing import Any

import pytest


def test_many_prompts_keep_their_order(talk: Any, client: Any) -> None:
    client.texts = ["One.", "Two."]
    answer = talk.complete(["Hello", "Bye"], n=2, echo=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["HelloOne.", "HelloTwo.", "ByeOne.", "ByeTwo."]
    assert len({request.request_id for request in client.opened}) == 2


def test_token_ids_are_prompts_too(talk: Any, client: Any) -> None:
    ids = client.tokenizer.encode("Hello there")
    assert talk.complete(ids, echo=True)["choices"][0]["text"] == "Hello thereParis."
    assert [c["text"] for c in talk.complete([ids, ids[:1]], echo=True)["choices"]] == [
        "Hello thereParis.",
        "HelloParis.",
    ]


def test_best_of_returns_the_likeliest(talk: Any, client: Any) -> None:
    client.texts = ["One.", "Two."]  # the script makes later sequences less likely
    answer = talk.complete(n=1, best_of=2)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "One.")]
    assert answer["usage"]["completion_tokens"] == 2 * (len(client.tokenizer.encode("One.")) + 1)


def test_echo_with_logprobs_is_what_lm_eval_reads(talk: Any, client: Any) -> None:
    prompts = [client.tokenizer.encode("The sky is blue"), client.tokenizer.encode("Water")]
    answer = talk.complete(prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234)
    for choice, prompt in zip(answer["choices"], prompts, strict=True):
        found = choice["logprobs"]
        assert found["token_logprobs"] == [None] + [-0.5] * len(prompt)
        assert found["top_logprobs"][0] is None
        assert all(
            max(top, key=top.get) == token
            for top, token in zip(found["top_logprobs"][1:], found["tokens"][1:], strict=True)
        )
        assert "".join(found["tokens"]) == choice["text"]
        assert found["text_offset"] == [
            choice["text"].index("".join(found["tokens"][i:])) for i in range(len(prompt) + 1)
        ]


def test_no_tokens_but_the_prompts_log_probabilities(talk: Any) -> None:
    answer = talk.complete("Hello there", echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], answer["usage"]["completion_tokens"]) == ("Hello there", 0)
    assert "".join(choice["logprobs"]["tokens"]) == "Hello there"


def test_a_completion_stream_adds_up_to_the_answer(talk: Any, client: Any) -> None:
    client.texts = ["One two.", "Three."]
    whole = talk.complete(["Hello", "Bye"], echo=True, logprobs=2, n=2)
    chunks = talk.completion_events(["Hello", "Bye"], echo=True, logprobs=2, n=2)
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for key, value in choice["logprobs"].items():
            assert [entry for part in parts if part["logprobs"] for entry in part["logprobs"][key]] == value
        assert [part["finish_reason"] for part in parts][-1] == choice["finish_reason"]


def test_prompt_logprobs_in_vllms_form(talk: Any, client: Any) -> None:
    ids = client.tokenizer.encode("Hello there")
    (choice,) = talk.complete(ids, prompt_logprobs=1)["choices"]
    assert choice["prompt_logprobs"] == [
        None,
        {str(ids[1]): {"logprob": -0.5, "rank": 1, "decoded_token": " there"}},
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Hi 🦒 yes", "🦒🦒", "日本 no"])
def test_tokens_stand_in_the_text_and_keep_their_own_log_probabilities(
    talk: Any, client: Any, prompt: str, stream: bool
) -> None:
    client.texts = ["An 🦒 now."]
    options: dict[str, Any] = {"echo": True, "logprobs": 20}
    if stream:
        parts = [chunk["choices"][0] for chunk in talk.completion_events(prompt, **options)]
        text = "".join(part["text"] for part in parts)
        found = {key: [e for p in parts if p["logprobs"] for e in p["logprobs"][key]] for key in parts[0]["logprobs"]}
    else:
        (choice,) = talk.complete(prompt, **options)["choices"]
        text, found = choice["text"], choice["logprobs"]
    assert text == prompt + "An 🦒 now."
    whole = [
        (token, at) for token, at in zip(found["tokens"], found["text_offset"], strict=True) if "\ufffd" not in token
    ]
    assert [text[at : at + len(token)] for token, at in whole[:-1]] == [token for token, _ in whole[:-1]]
    assert found["text_offset"] == sorted(found["text_offset"])
    assert [len(top) for top in found["top_logprobs"][1:]] == [20] * (len(found["tokens"]) - 1)
    chosen = [top and top[token] for top, token in zip(found["top_logprobs"], found["tokens"], strict=True)]
    assert chosen == found["token_logprobs"]


@pytest.mark.parametrize("extra", [{}, {"echo": True}, {"logprobs": 1}, {"return_token_ids": True}])
def test_no_tokens_at_all(talk: Any, extra: dict[str, Any]) -> None:
    answer = talk.complete("Hello", max_tokens=0, **extra)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hello" if extra.get("echo") else "", "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert choice.get("token_ids", []) == []
    assert choice["logprobs"] is None
    chunks = talk.completion_events("Hello", max_tokens=0, **extra)
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "length"


@pytest.mark.parametrize("prompt", ["", None])
def test_an_empty_prompt_begins_a_text(talk: Any, client: Any, prompt: str | None) -> None:
    assert talk.complete(prompt, echo=True)["choices"][0]["text"] == "Paris."
    assert client.opened[0].prompt_token_ids == [client.tokenizer.bos_token_id]
    assert [c["text"] for c in talk.complete(["Hello", ""], echo=True)["choices"]] == ["HelloParis.", "Paris."]
