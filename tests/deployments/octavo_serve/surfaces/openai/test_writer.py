"""What answers and streams of chats and completions have in common."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.operation import Call
from octavo_serve.api.service import Service
from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.surface import COMPLETIONS
from octavo_serve.surfaces.tokens.operations import tokenize
from octavo_serve.surfaces.tokens.schemas import TokenizeRequest

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def test_without_include_usage_no_chunk_mentions_it(talk: Any) -> None:
    assert all("usage" not in chunk for chunk in talk.chat_events() + talk.completion_events())


@pytest.mark.parametrize("n", [1, 2])
def test_streamed_prompt_log_probabilities_come_once(talk: Any, client: Any, n: int) -> None:
    client.texts = ["One, two.", "Three."]
    whole = talk.complete("Hello there", prompt_logprobs=1, n=n)["choices"]
    chunks = [chunk["choices"][0] for chunk in talk.completion_events("Hello there", prompt_logprobs=1, n=n)]
    for choice in whole:
        of_choice = [chunk["prompt_logprobs"] for chunk in chunks if chunk["index"] == choice["index"]]
        assert of_choice == [choice["prompt_logprobs"]] + [None] * (len(of_choice) - 1)
        assert len(of_choice) > 1
    chats = talk.chat_events(prompt_logprobs=1, n=n)
    assert chats[0]["prompt_logprobs"] == talk.chat(prompt_logprobs=1, n=n)["prompt_logprobs"]
    assert not any(chunk.get("prompt_logprobs") for chunk in chats[1:])


def test_usage_so_far_counts_what_was_sent(talk: Any, client: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    client.texts = ["Paris is here.", "No."]
    chunks = talk.chat_events(stream_options=options, max_tokens=4, ignore_eos=True)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[0] == 0  # the role
    assert counts[1:] == sorted(counts[1:])
    assert (counts[1], counts[-1]) == (1, 4)
    sent = [chunk["usage"]["completion_tokens"] for chunk in talk.chat_events(stream_options=options, n=2)]
    assert sent[:4] == [0, 1, 1, 2]  # a role and a token of each
    texts = talk.completion_events(stream_options=options, max_tokens=4, ignore_eos=True)
    assert [chunk["usage"]["completion_tokens"] for chunk in texts] == [1, 2, 3, 4, 4]


def test_token_ids_are_returned(talk: Any, client: Any) -> None:
    prompt_ids, ids = client.tokenizer.encode("Hello"), client.tokenizer.encode("Paris.")
    ids = [*ids, min(client.tokenizer.eos_token_ids)]
    (choice,) = talk.complete("Hello", return_token_ids=True)["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (prompt_ids, ids)
    parts = [c for chunk in talk.completion_events("Hello", return_token_ids=True) for c in chunk["choices"]]
    assert [part.get("prompt_token_ids") for part in parts] == [prompt_ids] + [None] * (len(parts) - 1)
    assert [token for part in parts for token in part["token_ids"]] == ids
    answer = talk.chat(return_token_ids=True)
    assert answer["prompt_token_ids"] == client.opened[-1].prompt_token_ids
    assert answer["choices"][0]["token_ids"] == ids
    chunks = talk.chat_events(return_token_ids=True)
    assert [chunk.get("prompt_token_ids") is not None for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert [token for chunk in chunks for c in chunk["choices"] for token in c.get("token_ids", ())] == ids
    assert not {"token_ids", "prompt_token_ids"} & (talk.chat().keys() | talk.chat()["choices"][0].keys())


def test_tokens_go_by_their_ids(talk: Any, client: Any) -> None:
    first, *_ = client.tokenizer.encode("Paris.")
    asked = {"return_tokens_as_token_ids": True, "max_tokens": 1}
    found = talk.complete("Hello", logprobs=2, **asked)["choices"][0]["logprobs"]
    assert found["tokens"] == [f"token_id:{first}"]
    assert found["top_logprobs"] == [{f"token_id:{first}": -0.5, f"token_id:{first + 1}": -1.5}]
    (entry,) = talk.chat(logprobs=True, top_logprobs=1, **asked)["choices"][0]["logprobs"]["content"]
    assert (entry["token"], bytes(entry["bytes"])) == (f"token_id:{first}", client.tokenizer.token_bytes(first))
    assert entry["top_logprobs"][0]["token"] == f"token_id:{first}"


def test_a_request_id_becomes_part_of_the_answers_and_never_the_engines(talk: Any, client: Any) -> None:
    assert talk.chat(request_id="mine")["id"] == "chatcmpl-mine"
    assert {chunk["id"] for chunk in talk.completion_events(request_id="mine")} == {"cmpl-mine"}
    assert all("mine" not in request.request_id for request in client.opened)
    assert len({request.request_id for request in client.opened}) == 2


def test_keys_that_clients_read_are_there(service: Service, talk: Any) -> None:
    answer = talk.chat()
    assert (answer["prompt_logprobs"], answer["service_tier"]) == (None, None)
    assert answer["system_fingerprint"].startswith("fp_")
    completion = talk.complete()
    assert completion["choices"][0]["prompt_logprobs"] is None
    everything = [answer, completion, *talk.chat_events(), *talk.completion_events()]
    assert len({found["system_fingerprint"] for found in everything}) == 1
    found: Any = asyncio.run(tokenize(service, Call(body=parse(TokenizeRequest, {"prompt": "Hello"}))))
    assert found["token_strs"] is None


def test_prompt_log_probabilities_have_a_bound_over_all_choices(service: Service) -> None:
    def write(surface: Surface[Any, Any, Any], prompt_tokens: int, body: dict[str, Any]) -> None:
        parsed = parse(surface.body, body)
        job = asyncio.run(service.job(surface.ask(parsed, Limits())))
        job.requests[0].prompt_token_ids = [0] * prompt_tokens
        surface.writer(parsed, job, True)

    echo = {"prompt": "a", "echo": True, "logprobs": 20, "prompt_logprobs": 20}
    write(COMPLETIONS, 40_000, echo)
    with pytest.raises(BadRequest, match="at most 2097152 fit one"):
        write(COMPLETIONS, 8_000, echo | {"n": 128})
    write(CHAT, 90_000, HELLO | {"prompt_logprobs": 20, "n": 128})  # a chat's answer says them once
    write(COMPLETIONS, 2**22, {"prompt": "a", "n": 128, "logprobs": 20})
