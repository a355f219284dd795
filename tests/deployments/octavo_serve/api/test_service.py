"""From what is asked to a job: checked, tokenised, with the model's defaults, and nothing long on the event loop."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from octavo.block_hash import hash_chain, root_hash
from octavo.errors import BadRequest, Overloaded, PromptTooLong, UnknownModel
from octavo_serve.api.body import parse
from octavo_serve.api.jobs import Job
from octavo_serve.api.model import Defaults
from octavo_serve.api.operation import Call
from octavo_serve.api.service import Service
from octavo_serve.api.threads import FairThreads, Threads
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS
from octavo_serve.surfaces.tokens.operations import detokenize, tokenize
from octavo_serve.surfaces.tokens.schemas import DetokenizeRequest, TokenizeRequest

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def test_the_request_carries_the_chain_the_router_needs(talk: Any, client: Any) -> None:
    talk.chat(cache_salt="tenant", priority=3)
    (request,) = client.opened
    assert request.block_hashes == hash_chain(root_hash("scripted", salt="tenant"), request.prompt_token_ids, 16)
    assert request.priority == 3


def test_models(service: Service, talk: Any) -> None:
    with pytest.raises(UnknownModel, match="'huge' does not exist; served here: tiny"):
        talk.chat(model="huge")
    assert talk.chat(model=None)["model"] == "tiny"
    card = service.models.card("tiny")
    assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 256)


def test_limits_of_the_context(talk: Any) -> None:
    with pytest.raises(PromptTooLong, match="context of 256 tokens"):
        talk.complete("word " * 300)
    with pytest.raises(PromptTooLong, match="max_tokens asks for 1000"):
        talk.complete("word", max_tokens=1000)
    with pytest.raises(BadRequest, match="not in the vocabulary"):
        talk.complete([10**6])


def test_a_refused_request_is_not_tokenised(service: Service, talk: Any, client: Any) -> None:
    encoded: list[str] = []
    client.tokenizer.encode, encode = lambda text, **_: encoded.append(text), client.tokenizer.encode
    try:
        for refusing in (client, service.lateness):
            client.full = Overloaded("full", 3.0) if refusing is client else None
            service.lateness.seconds = 9.0 if refusing is service.lateness else 0.0
            for ask in (talk.chat, partial(talk.complete, "word")):
                with pytest.raises(Overloaded):
                    ask()
        assert encoded == []
    finally:
        client.tokenizer.encode = encode


def test_what_takes_long_leaves_the_event_loop_alone(service: Service, talk: Any, client: Any) -> None:
    beside: list[str] = []

    class Noting(Threads):
        async def run(self, work: Any, *args: Any, **kwargs: Any) -> Any:
            beside.append(getattr(work, "func", work).__name__)
            return await super().run(work, *args, **kwargs)

        async def finish(self, work: Any, *args: Any, **kwargs: Any) -> Any:
            beside.append(getattr(work, "func", work).__name__)
            return await super().finish(work, *args, **kwargs)

    talk.chat()  # which compiles the template
    service.threads = service.prompt_threads = service.template_threads = Noting()
    talk.chat(logprobs=True, max_tokens=3)
    talk.complete(["a", "b"], echo=True)
    assert beside == []
    for long in ("7" * 100_000, [7] * 10_000, ["7" * 2000] * 6):
        with pytest.raises(BadRequest):
            talk.complete(long)
    for messages in ([{"role": "user", "content": "7" * 100_000}], [{"role": "user", "content": "7"}] * 300):
        with pytest.raises(PromptTooLong):
            talk.chat(messages=messages)
    assert beside == ["prepare"] * 3 + ["_rendered", "prepare"] * 2
    beside.clear()
    ids = client.tokenizer.encode("word " * 200)
    talk.complete(ids, echo=True, logprobs=5, prompt_logprobs=5)
    talk.completion_events(ids, echo=True, logprobs=5, prompt_logprobs=5)
    talk.chat_events(messages=[{"role": "user", "content": "word " * 200}], prompt_logprobs=5)
    assert beside == ["_put_answer", "_put", "_put"]
    beside.clear()
    asyncio.run(detokenize(service, Call(body=parse(DetokenizeRequest, {"tokens": [5] * 10_000}))))
    asyncio.run(tokenize(service, Call(body=parse(TokenizeRequest, {"prompt": "7" * 10_000}))))
    assert beside == ["_detokenized", "_tokens"]


def test_grammars_that_take_long_are_made_apart(service: Service, talk: Any) -> None:
    slow: list[Any] = []

    class Noting(FairThreads):
        async def run(self, asker: str, work: Any, *args: Any, **kwargs: Any) -> Any:
            slow.append(work.args[0].structured_outputs.grammar)
            return await super().run(asker, work, *args, **kwargs)

    service.slow_grammar_threads = Noting(1, 1, "requests")
    long = "root ::= " + " | ".join(f'"word {i}"' for i in range(500))
    talk.complete("word", guided_json={"type": "integer"})
    assert slow == []
    talk.complete("word", guided_grammar=long)
    assert slow == [long]


def test_what_was_accepted_is_not_refused_while_it_is_prepared(service: Service) -> None:
    service.threads = service.prompt_threads = Threads(1, waiting=1)
    body = parse(CompletionRequest, {"prompt": ["word " * 220] * 8})  # long together

    async def prepare() -> list[Job]:
        return await asyncio.gather(*(service.job(COMPLETIONS.ask(body, service.limits)) for _ in range(5)))

    assert [len(job.requests) for job in asyncio.run(prepare())] == [8] * 5


def test_a_template_that_does_not_end_is_one_sentence(talk: Any, client: Any) -> None:
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    client.tokenizer.chat_templates, kept = {"default": template}, client.tokenizer.chat_templates
    try:
        with pytest.raises(BadRequest, match="template was stopped"):
            talk.chat()
    finally:
        client.tokenizer.chat_templates = kept
    assert talk.chat()["choices"][0]["message"]["content"] == "Paris."


def test_the_cache_key_keeps_requests_together(talk: Any, client: Any) -> None:
    talk.chat(prompt_cache_key="k", user="u")
    assert client.opened[0].session == "k"


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
    service: Service, talk: Any, wrong: dict[str, Any], param: str
) -> None:
    tiny = service.models.entries["tiny"]
    tiny.update(shards=0)
    service.models.wait = 3600.0
    with pytest.raises(BadRequest) as caught:
        talk.chat(**wrong)
    assert caught.value.param == param
    with pytest.raises(BadRequest, match="at most 8 prompts"):
        talk.complete(["a"] * 9)
    with pytest.raises(UnknownModel):
        talk.chat(model="huge")


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
def test_messages_are_checked_before_anything_waits_for_a_model(
    service: Service, talk: Any, wrong: dict[str, Any]
) -> None:
    tiny = service.models.entries["tiny"]
    tiny.update(shards=0)
    service.models.wait = 3600.0
    with pytest.raises(BadRequest):
        talk.chat(**wrong)
    with pytest.raises(BadRequest):
        asyncio.run(tokenize(service, Call(body=parse(TokenizeRequest, {"messages": HELLO["messages"]} | wrong))))


SAMPLING = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}


def test_what_a_request_leaves_open_is_the_models(service: Service, talk: Any, client: Any) -> None:
    service.models.entries["tiny"].update(defaults=Defaults(max_tokens=40, sampling=SAMPLING))
    talk.chat()
    params = client.opened[-1].params
    assert {name: getattr(params, name) for name in SAMPLING} == SAMPLING
    assert params.max_tokens == 40
    explicit = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    talk.chat(**explicit, max_tokens=50)
    params = client.opened[-1].params
    assert {name: getattr(params, name) for name in SAMPLING} == explicit
    assert params.max_tokens == 50
    talk.chat(top_p=0)
    assert client.opened[-1].params.temperature == 0
    talk.complete()
    assert client.opened[-1].params.max_tokens == 16


def test_the_default_bound_ends_with_the_context(service: Service, talk: Any, client: Any) -> None:
    service.models.entries["tiny"].update(defaults=Defaults(max_tokens=4096))
    talk.chat()
    request = client.opened[-1]
    assert len(request.prompt_token_ids) + request.params.max_tokens == 256
    talk.chat(min_tokens=250)  # more than there is room for: the engine ends it
    assert client.opened[-1].params.max_tokens == 250
