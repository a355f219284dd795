"""Answers and streams over a scripted model: what the OpenAI SDKs expect, field by field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from octavo.block_hash import hash_chain, root_hash
from octavo.errors import BadRequest, OctavoError, PromptTooLong, UnknownModel
from octavo_serve.api.model import Defaults
from octavo_serve.api.service import Service
from octavo_serve.api.threads import Threads
from octavo_serve.surfaces.openai.conversion import parse
from octavo_serve.surfaces.openai.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def chat(service: Service, **extra: Any) -> Any:
    return asyncio.run(service.chat(parse(ChatRequest, HELLO | extra)))


def complete(service: Service, prompt: Any = "Hello", **extra: Any) -> Any:
    return asyncio.run(service.complete(parse(CompletionRequest, {"prompt": prompt} | extra)))


def chat_chunks(service: Service, **extra: Any) -> list[Any]:
    return asyncio.run(_collect(service.chat_stream(parse(ChatRequest, HELLO | {"stream": True} | extra))))


def completion_chunks(service: Service, prompt: Any = "Hello", **extra: Any) -> list[Any]:
    body = parse(CompletionRequest, {"prompt": prompt, "stream": True} | extra)
    return asyncio.run(_collect(service.complete_stream(body)))


async def _collect(stream: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(stream):
        return [event async for event in stream]


def test_chat(service: Service, client: Any) -> None:
    client.cached_tokens = 16
    answer = chat(service)
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


def test_the_request_carries_the_chain_the_router_needs(service: Service, client: Any) -> None:
    chat(service, cache_salt="tenant", priority=3)
    (request,) = client.opened
    assert request.block_hashes == hash_chain(root_hash("scripted", salt="tenant"), request.prompt_token_ids, 16)
    assert request.priority == 3


def test_a_chat_stream_is_a_role_then_deltas_then_the_reason_then_usage(service: Service) -> None:
    chunks = chat_chunks(service, stream_options={"include_usage": True})
    *events, last = chunks
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["usage"] for chunk in events] == [None] * len(events)
    assert (last["choices"], last["usage"]["completion_tokens"] > 0) == ([], True)
    deltas = [chunk["choices"][0]["delta"] for chunk in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Paris."
    assert [chunk["choices"][0]["finish_reason"] for chunk in events] == [None] * (len(events) - 1) + ["stop"]


def test_without_include_usage_no_chunk_mentions_it(service: Service) -> None:
    assert all("usage" not in chunk for chunk in chat_chunks(service) + completion_chunks(service))


def test_characters_are_never_cut(service: Service, client: Any) -> None:
    client.texts = ["Brücke 🌉 橋"]
    contents = [chunk["choices"][0]["delta"].get("content", "") for chunk in chat_chunks(service)]
    assert "".join(contents) == "Brücke 🌉 橋"
    assert not any("\ufffd" in content for content in contents)


def test_chat_logprobs_name_each_token(service: Service, client: Any) -> None:
    content = chat(service, logprobs=True, top_logprobs=2, max_tokens=2)["choices"][0]["logprobs"]["content"]
    tokens = client.tokenizer.encode("Paris.")[:2]
    assert [bytes(entry["bytes"]) for entry in content] == [client.tokenizer.token_bytes(token) for token in tokens]
    assert [entry["logprob"] for entry in content] == [-0.5, -0.5]
    assert [[top["logprob"] for top in entry["top_logprobs"]] for entry in content] == [[-0.5, -1.5]] * 2
    streamed = chat_chunks(service, logprobs=True, top_logprobs=2, max_tokens=2)
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed if chunk["choices"][0]["logprobs"]]
    assert [entry for part in parts for entry in part["content"]] == content


def test_n_choices_come_from_one_request(service: Service, client: Any) -> None:
    client.texts = ["One.", "Two, three."]
    answer = chat(service, n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["One.", "Two, three."]
    assert len(client.opened) == 1
    chunks = chat_chunks(service, n=2)
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == ["One.", "Two, three."]


def test_many_prompts_keep_their_order(service: Service, client: Any) -> None:
    client.texts = ["One.", "Two."]
    answer = complete(service, ["Hello", "Bye"], n=2, echo=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["HelloOne.", "HelloTwo.", "ByeOne.", "ByeTwo."]
    assert len({request.request_id for request in client.opened}) == 2


def test_token_ids_are_prompts_too(service: Service, client: Any) -> None:
    ids = client.tokenizer.encode("Hello there")
    assert complete(service, ids, echo=True)["choices"][0]["text"] == "Hello thereParis."
    assert [c["text"] for c in complete(service, [ids, ids[:1]], echo=True)["choices"]] == [
        "Hello thereParis.",
        "HelloParis.",
    ]


def test_best_of_returns_the_likeliest(service: Service, client: Any) -> None:
    client.texts = ["One.", "Two."]  # the script makes later sequences less likely
    answer = complete(service, n=1, best_of=2)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "One.")]
    assert answer["usage"]["completion_tokens"] == 2 * (len(client.tokenizer.encode("One.")) + 1)


def test_echo_with_logprobs_is_what_lm_eval_reads(service: Service, client: Any) -> None:
    prompts = [client.tokenizer.encode("The sky is blue"), client.tokenizer.encode("Water")]
    answer = complete(service, prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234)
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


def test_no_tokens_but_the_prompts_log_probabilities(service: Service) -> None:
    answer = complete(service, "Hello there", echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], answer["usage"]["completion_tokens"]) == ("Hello there", 0)
    assert "".join(choice["logprobs"]["tokens"]) == "Hello there"


def test_a_completion_stream_adds_up_to_the_answer(service: Service, client: Any) -> None:
    client.texts = ["One two.", "Three."]
    whole = complete(service, ["Hello", "Bye"], echo=True, logprobs=2, n=2)
    chunks = completion_chunks(service, ["Hello", "Bye"], echo=True, logprobs=2, n=2)
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for key, value in choice["logprobs"].items():
            assert [entry for part in parts if part["logprobs"] for entry in part["logprobs"][key]] == value
        assert [part["finish_reason"] for part in parts][-1] == choice["finish_reason"]


def test_prompt_logprobs_in_vllms_form(service: Service, client: Any) -> None:
    ids = client.tokenizer.encode("Hello there")
    (choice,) = complete(service, ids, prompt_logprobs=1)["choices"]
    assert choice["prompt_logprobs"] == [
        None,
        {str(ids[1]): {"logprob": -0.5, "rank": 1, "decoded_token": " there"}},
    ]


def test_a_stop_string_ends_a_request(service: Service, client: Any) -> None:
    client.texts = ["Paris is the capital of France."]
    answer = chat(service, stop=[" capital"])
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == (
        "Paris is the",
        "stop",
        " capital",
    )
    assert client.closed == [client.opened[0].request_id]
    assert client.aborted == []


def test_a_stop_string_ends_one_of_several_sequences(service: Service, client: Any) -> None:
    client.texts = ["Paris is the capital of France.", "Lyon is not the largest city of the country."]
    answer = chat(service, stop=[" capital"], n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Paris is the", client.texts[1]]
    assert client.aborted == [(client.opened[0].request_id, 0)]


def test_leaving_a_stream_closes_the_request(service: Service, client: Any) -> None:
    async def leave() -> None:
        async with aclosing(service.complete_stream(parse(CompletionRequest, {"prompt": ["a", "b"]}))) as stream:
            await anext(stream)

    client.texts = ["a rather long text of many tokens"]
    asyncio.run(leave())
    assert sorted(client.closed) == sorted(request.request_id for request in client.opened)


def test_errors_before_and_after_the_first_token(service: Service, client: Any) -> None:
    client.error = BadRequest("no", "prompt")
    with pytest.raises(BadRequest, match="no"):
        chat_chunks(service)
    client.error, client.late_error, client.fail_after = None, OctavoError("lost"), 1
    with pytest.raises(OctavoError, match="lost"):
        chat(service)


def test_an_error_that_came_while_the_consumer_was_busy_is_not_lost(service: Service, client: Any) -> None:
    async def read_slowly() -> None:
        async with aclosing(service.chat_stream(parse(ChatRequest, HELLO | {"stream": True}))) as stream:
            async for _ in stream:
                await asyncio.sleep(0.02)

    client.texts, client.late_error, client.fail_after = ["one two three four"], OctavoError("lost"), 3
    with pytest.raises(OctavoError, match="lost"):
        asyncio.run(asyncio.wait_for(read_slowly(), 5))


def test_models(service: Service) -> None:
    with pytest.raises(UnknownModel, match="'huge' does not exist; served here: tiny"):
        chat(service, model="huge")
    assert chat(service, model=None)["model"] == "tiny"
    card = service.models.card("tiny")
    assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 256)


def test_limits_of_the_context(service: Service) -> None:
    with pytest.raises(PromptTooLong, match="context of 256 tokens"):
        complete(service, "word " * 300)
    with pytest.raises(PromptTooLong, match="max_tokens asks for 1000"):
        complete(service, "word", max_tokens=1000)
    with pytest.raises(BadRequest, match="not in the vocabulary"):
        complete(service, [10**6])


def test_tokenize_and_back(service: Service, client: Any) -> None:
    found: Any = asyncio.run(service.tokenize(parse(TokenizeRequest, {"prompt": "Hello", "return_token_strs": True})))
    assert found == {
        "count": 1,
        "max_model_len": 256,
        "tokens": client.tokenizer.encode("Hello"),
        "token_strs": ["Hello"],
    }
    chat_ids: Any = asyncio.run(service.tokenize(parse(TokenizeRequest, {"messages": HELLO["messages"]})))
    chat(service)
    assert chat_ids["tokens"] == client.opened[0].prompt_token_ids
    back = asyncio.run(service.detokenize(parse(DetokenizeRequest, {"tokens": found["tokens"]})))
    assert back == {"prompt": "Hello"}


def test_a_long_text_is_the_same_from_its_thread(service: Service, client: Any) -> None:
    text = "word, " * 5000
    found: Any = asyncio.run(service.tokenize(parse(TokenizeRequest, {"prompt": text})))
    assert found["tokens"] == client.tokenizer.encode(text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Hi 🦒 yes", "🦒🦒", "日本 no"])
def test_tokens_stand_in_the_text_and_keep_their_own_log_probabilities(
    service: Service, client: Any, prompt: str, stream: bool
) -> None:
    client.texts = ["An 🦒 now."]
    options: dict[str, Any] = {"echo": True, "logprobs": 20}
    if stream:
        parts = [chunk["choices"][0] for chunk in completion_chunks(service, prompt, **options)]
        text = "".join(part["text"] for part in parts)
        found = {key: [e for p in parts if p["logprobs"] for e in p["logprobs"][key]] for key in parts[0]["logprobs"]}
    else:
        (choice,) = complete(service, prompt, **options)["choices"]
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


@pytest.mark.parametrize("n", [1, 2])
def test_streamed_prompt_log_probabilities_come_once(service: Service, client: Any, n: int) -> None:
    client.texts = ["One, two.", "Three."]
    whole = complete(service, "Hello there", prompt_logprobs=1, n=n)["choices"]
    chunks = [chunk["choices"][0] for chunk in completion_chunks(service, "Hello there", prompt_logprobs=1, n=n)]
    for choice in whole:
        of_choice = [chunk["prompt_logprobs"] for chunk in chunks if chunk["index"] == choice["index"]]
        assert of_choice == [choice["prompt_logprobs"]] + [None] * (len(of_choice) - 1)
        assert len(of_choice) > 1
    chats = chat_chunks(service, prompt_logprobs=1, n=n)
    assert chats[0]["prompt_logprobs"] == chat(service, prompt_logprobs=1, n=n)["prompt_logprobs"]
    assert not any(chunk.get("prompt_logprobs") for chunk in chats[1:])


def test_usage_so_far_counts_what_was_sent(service: Service, client: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    client.texts = ["Paris is here.", "No."]
    chunks = chat_chunks(service, stream_options=options, max_tokens=4, ignore_eos=True)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[0] == 0  # the role
    assert counts[1:] == sorted(counts[1:])
    assert (counts[1], counts[-1]) == (1, 4)
    sent = [chunk["usage"]["completion_tokens"] for chunk in chat_chunks(service, stream_options=options, n=2)]
    assert sent[:4] == [0, 1, 1, 2]  # a role and a token of each
    texts = completion_chunks(service, stream_options=options, max_tokens=4, ignore_eos=True)
    assert [chunk["usage"]["completion_tokens"] for chunk in texts] == [1, 2, 3, 4, 4]


def test_what_takes_long_leaves_the_event_loop_alone(service: Service, client: Any) -> None:
    beside: list[str] = []

    class Noting(Threads):
        async def run(self, work: Any, *args: Any, **kwargs: Any) -> Any:
            beside.append(getattr(work, "func", work).__name__)
            return await super().run(work, *args, **kwargs)

        async def finish(self, work: Any, *args: Any, **kwargs: Any) -> Any:
            beside.append(work.__name__)
            return await super().finish(work, *args, **kwargs)

    chat(service)  # which compiles the template
    service.threads = service.template_threads = Noting()
    chat(service, logprobs=True, max_tokens=3)
    complete(service, ["a", "b"], echo=True)
    assert beside == []
    for long in ("7" * 100_000, [7] * 10_000, ["7" * 2000] * 6):
        with pytest.raises(BadRequest):
            complete(service, long)
    for messages in ([{"role": "user", "content": "7" * 100_000}], [{"role": "user", "content": "7"}] * 300):
        with pytest.raises(PromptTooLong):
            chat(service, messages=messages)
    assert beside == ["prepare"] * 3 + ["_rendered", "prepare"] * 2
    beside.clear()
    ids = client.tokenizer.encode("word " * 200)
    complete(service, ids, echo=True, logprobs=5, prompt_logprobs=5)
    completion_chunks(service, ids, echo=True, logprobs=5, prompt_logprobs=5)
    chat_chunks(service, messages=[{"role": "user", "content": "word " * 200}], prompt_logprobs=5)
    assert beside == ["completion_answer", "choice", "first_chat_chunk"]
    beside.clear()
    asyncio.run(service.detokenize(parse(DetokenizeRequest, {"tokens": [5] * 10_000})))
    asyncio.run(service.tokenize(parse(TokenizeRequest, {"prompt": "7" * 10_000})))
    assert beside == ["_detokenized", "_tokens"]


def test_a_template_that_does_not_end_is_one_sentence(service: Service, client: Any) -> None:
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    client.tokenizer.chat_templates, kept = {"default": template}, client.tokenizer.chat_templates
    try:
        with pytest.raises(BadRequest, match="template was stopped"):
            chat(service)
    finally:
        client.tokenizer.chat_templates = kept
    assert chat(service)["choices"][0]["message"]["content"] == "Paris."


def test_a_limit_that_is_too_low_is_called_by_its_name(service: Service) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(BadRequest, match=f"^{name} must be at least 1") as refused:
            chat(service, **{name: 0})
        assert refused.value.param == name


def test_max_completion_tokens_wins_and_is_counted(service: Service, client: Any) -> None:
    client.texts = ["One two three four five six seven."]
    answer = chat(service, max_tokens=0, max_completion_tokens=5)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    assert chat(service, max_tokens=1, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("extra", [{}, {"echo": True}, {"logprobs": 1}, {"return_token_ids": True}])
def test_no_tokens_at_all(service: Service, extra: dict[str, Any]) -> None:
    answer = complete(service, "Hello", max_tokens=0, **extra)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hello" if extra.get("echo") else "", "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert choice.get("token_ids", []) == []
    assert choice["logprobs"] is None
    chunks = completion_chunks(service, "Hello", max_tokens=0, **extra)
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "length"


@pytest.mark.parametrize("prompt", ["", None])
def test_an_empty_prompt_begins_a_text(service: Service, client: Any, prompt: str | None) -> None:
    assert complete(service, prompt, echo=True)["choices"][0]["text"] == "Paris."
    assert client.opened[0].prompt_token_ids == [client.tokenizer.bos_token_id]
    assert [c["text"] for c in complete(service, ["Hello", ""], echo=True)["choices"]] == ["HelloParis.", "Paris."]


def test_token_ids_are_returned(service: Service, client: Any) -> None:
    prompt_ids, ids = client.tokenizer.encode("Hello"), client.tokenizer.encode("Paris.")
    ids = [*ids, min(client.tokenizer.eos_token_ids)]
    (choice,) = complete(service, "Hello", return_token_ids=True)["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (prompt_ids, ids)
    parts = [c for chunk in completion_chunks(service, "Hello", return_token_ids=True) for c in chunk["choices"]]
    assert [part.get("prompt_token_ids") for part in parts] == [prompt_ids] + [None] * (len(parts) - 1)
    assert [token for part in parts for token in part["token_ids"]] == ids
    answer = chat(service, return_token_ids=True)
    assert answer["prompt_token_ids"] == client.opened[-1].prompt_token_ids
    assert answer["choices"][0]["token_ids"] == ids
    chunks = chat_chunks(service, return_token_ids=True)
    assert [chunk.get("prompt_token_ids") is not None for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert [token for chunk in chunks for c in chunk["choices"] for token in c.get("token_ids", ())] == ids
    assert not {"token_ids", "prompt_token_ids"} & (chat(service).keys() | chat(service)["choices"][0].keys())


def test_token_ids_of_characters_that_are_not_whole_are_not_lost(service: Service, client: Any) -> None:
    client.texts = ["Brücke 🌉 橋"]
    chunks = chat_chunks(service, return_token_ids=True)
    ids = [token for chunk in chunks for c in chunk["choices"] for token in c.get("token_ids", ())]
    assert ids[:-1] == client.tokenizer.encode("Brücke 🌉 橋")


def test_tokens_go_by_their_ids(service: Service, client: Any) -> None:
    first, *_ = client.tokenizer.encode("Paris.")
    asked = {"return_tokens_as_token_ids": True, "max_tokens": 1}
    found = complete(service, "Hello", logprobs=2, **asked)["choices"][0]["logprobs"]
    assert found["tokens"] == [f"token_id:{first}"]
    assert found["top_logprobs"] == [{f"token_id:{first}": -0.5, f"token_id:{first + 1}": -1.5}]
    (entry,) = chat(service, logprobs=True, top_logprobs=1, **asked)["choices"][0]["logprobs"]["content"]
    assert (entry["token"], bytes(entry["bytes"])) == (f"token_id:{first}", client.tokenizer.token_bytes(first))
    assert entry["top_logprobs"][0]["token"] == f"token_id:{first}"


def test_a_request_id_becomes_part_of_the_answers_and_never_the_engines(service: Service, client: Any) -> None:
    assert chat(service, request_id="mine")["id"] == "chatcmpl-mine"
    assert {chunk["id"] for chunk in completion_chunks(service, request_id="mine")} == {"cmpl-mine"}
    assert all("mine" not in request.request_id for request in client.opened)
    assert len({request.request_id for request in client.opened}) == 2


def test_the_cache_key_keeps_requests_together(service: Service, client: Any) -> None:
    chat(service, prompt_cache_key="k", user="u")
    assert client.opened[0].session == "k"


def test_keys_that_clients_read_are_there(service: Service) -> None:
    answer = chat(service)
    assert (answer["prompt_logprobs"], answer["service_tier"]) == (None, None)
    assert answer["system_fingerprint"].startswith("fp_")
    completion = complete(service)
    assert completion["choices"][0]["prompt_logprobs"] is None
    everything = [answer, completion, *chat_chunks(service), *completion_chunks(service)]
    assert len({found["system_fingerprint"] for found in everything}) == 1
    found: Any = asyncio.run(service.tokenize(parse(TokenizeRequest, {"prompt": "Hello"})))
    assert found["token_strs"] is None


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_k": -2}, "top_k"),
    ],
)
def test_fields_are_checked_before_anything_waits_for_a_model(
    service: Service, wrong: dict[str, Any], param: str
) -> None:
    tiny = service.models.entries["tiny"]
    tiny.shards, service.models.wait = 0, 3600.0
    tiny.changed()
    with pytest.raises(BadRequest) as caught:
        chat(service, **wrong)
    assert caught.value.param == param
    with pytest.raises(BadRequest, match="at most 8 prompts"):
        complete(service, ["a"] * 9)
    with pytest.raises(UnknownModel):
        chat(service, model="huge")


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": "f"}]},
        {"continue_final_message": True, "add_generation_prompt": True},
        {"chat_template_kwargs": {"messages": []}},
    ],
    ids=str,
)
def test_messages_are_checked_before_anything_waits_for_a_model(service: Service, wrong: dict[str, Any]) -> None:
    tiny = service.models.entries["tiny"]
    tiny.shards, service.models.wait = 0, 3600.0
    tiny.changed()
    with pytest.raises(BadRequest):
        chat(service, **wrong)
    with pytest.raises(BadRequest):
        asyncio.run(service.tokenize(parse(TokenizeRequest, {"messages": HELLO["messages"]} | wrong)))


SAMPLING = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}


def test_what_a_request_leaves_open_is_the_models(service: Service, client: Any) -> None:
    service.models.entries["tiny"].defaults = Defaults(max_tokens=40, sampling=SAMPLING)
    chat(service)
    params = client.opened[-1].params
    assert {name: getattr(params, name) for name in SAMPLING} == SAMPLING
    assert params.max_tokens == 40
    explicit = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    chat(service, **explicit, max_tokens=50)
    params = client.opened[-1].params
    assert {name: getattr(params, name) for name in SAMPLING} == explicit
    assert params.max_tokens == 50
    chat(service, top_p=0)
    assert client.opened[-1].params.temperature == 0
    complete(service)
    assert client.opened[-1].params.max_tokens == 16


def test_the_default_bound_ends_with_the_context(service: Service, client: Any) -> None:
    service.models.entries["tiny"].defaults = Defaults(max_tokens=4096)
    chat(service)
    request = client.opened[-1]
    assert len(request.prompt_token_ids) + request.params.max_tokens == 256
    chat(service, min_tokens=250)  # more than there is room for: the engine ends it
    assert client.opened[-1].params.max_tokens == 250
