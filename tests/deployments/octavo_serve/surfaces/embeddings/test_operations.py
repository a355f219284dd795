"""OpenAI's /v1/embeddings, with vLLM's extensions, over a model whose vectors depend on the token ids alone."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError, RateLimitError

from octavo.errors import EngineDead, OctavoError, Overloaded
from octavo_serve.api.bounds import MAX_TEXTS
from octavo_serve.api.service import Service
from octavo_serve.http.app import http_app


def vectors(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return np.array([one["embedding"] for one in answer.json()["data"]])


def test_texts_and_token_ids_alone_and_in_lists(ask_pooling: Any, pooler: Any) -> None:
    ids = pooler.tokenizer.encode("Hello")
    alone = vectors(ask_pooling("/v1/embeddings", {"model": "tiny", "input": "Hello"}))
    assert alone.shape == (1, 8)
    assert np.linalg.norm(alone) == pytest.approx(1)
    for same in (["Hello"], ids, [ids]):
        assert (vectors(ask_pooling("/v1/embeddings", {"input": same})) == alone).all()
    many = ask_pooling("/v1/embeddings", {"input": ["other", "Hello", "other"]})
    assert (vectors(many)[1] == alone).all()
    told = many.json()
    assert [one["index"] for one in told["data"]] == [0, 1, 2]
    tokens = len(ids) + 2 * len(pooler.tokenizer.encode("other"))
    assert told["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (told["object"], told["model"], told["id"][:5]) == ("list", "tiny", "embd-")
    assert all(one.pooling.task == "embed" for one in pooler.opened)


def test_base64_dimensions_and_length(ask_pooling: Any, pooler: Any) -> None:
    whole = vectors(ask_pooling("/v1/embeddings", {"input": "Hello"}))[0]
    packed = ask_pooling("/v1/embeddings", {"input": "Hello", "encoding_format": "base64"}).json()
    read = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    assert (read == whole.astype("<f4")).all()
    cut = vectors(ask_pooling("/v1/embeddings", {"input": "Hello", "dimensions": 4}))[0]
    assert cut == pytest.approx(whole[:4] / np.linalg.norm(whole[:4]), rel=1e-6)
    raw = vectors(ask_pooling("/v1/embeddings", {"input": "Hello", "normalize": False}))[0]
    assert (raw.astype("<f4") == pooler.values(pooler.opened[-1])).all()
    for wrong in (3, 9, 0):
        refused = ask_pooling("/v1/embeddings", {"input": "Hello", "dimensions": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


def test_texts_that_are_too_long(ask_pooling: Any, pooler: Any) -> None:
    long = "word " * 100
    for asked, name in ((long, "input"), (["short", long], "input[1]"), ([1] * 65, "input"), (long * 100, "input")):
        refused = ask_pooling("/v1/embeddings", {"input": asked}).json()["error"]
        assert refused["message"].startswith(f"{name} has "), refused
        assert "this model reads at most 64 of a text" in refused["message"]
        assert (refused["code"], refused["param"]) == ("context_length_exceeded", "input")
    assert pooler.opened == []
    ids = pooler.tokenizer.encode(long)
    for asked, kept in (
        ({"truncate_prompt_tokens": -1}, ids[:64]),
        ({"truncate_prompt_tokens": 5}, ids[:5]),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, ids[-5:]),
        ({"truncate_prompt_tokens": 5, "input": ids}, ids[:5]),
    ):
        vectors(ask_pooling("/v1/embeddings", {"input": long, **asked}))
        assert pooler.opened[-1].prompt_token_ids == kept


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"input": ""}, "input must not be an empty text"),
        ({"input": []}, "input must not be empty"),
        ({"input": ["a", ""]}, "input[1] must not be an empty text"),
        ({"input": [[1], []]}, "input[1] has no tokens"),
        ({"input": [10**9]}, "token id 1000000000 is not in the vocabulary of 49152 tokens"),
        ({}, "send either input or messages"),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, "input holds 10001 texts; one request may hold 10000: send several"),
        ({"input": "a", "prompt_name": "other"}, "this model has no prompt 'other': it has 'query'"),
        ({"input": [1], "prompt_name": "query"}, "a prompt is put before texts, not before token ids: send texts"),
        ({"input": {"a": 1}}, "input must be a string, a list of strings, a list of token ids or a list of such lists"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format must be 'float' or 'base64', got 'int8'"),
    ],
)
def test_what_is_refused(ask_pooling: Any, pooler: Any, given: Any, sentence: str) -> None:
    refused = ask_pooling("/v1/embeddings", content=None, json=given)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(sentence)
    assert pooler.opened == []


def test_prompts_of_the_checkpoint(ask_pooling: Any, pooler: Any) -> None:
    for asked in ({"prompt_name": "query"}, {"input_type": "search_query"}, {"input_type": "passage"}, {}):
        vectors(ask_pooling("/v1/embeddings", {"input": "Hello", **asked}))
    assert pooler.texts() == ["ask: Hello", "ask: Hello", "Hello", "Hello"]


def test_a_chat(ask_pooling: Any, pooler: Any) -> None:
    vectors(ask_pooling("/v1/embeddings", {"messages": [{"role": "user", "content": "Hello"}]}))
    (said,) = pooler.texts()
    assert said.endswith("<|im_start|>user\nHello<|im_end|>\n")


def test_a_model_that_makes_no_vectors(post: Any, ask_pooling: Any) -> None:
    refused = post("/v1/embeddings", {"input": "Hello"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert "cannot make embeddings: it can generate text" in refused.json()["error"]["message"]


def test_many_texts_are_a_bounded_number_at_a_time_in_order(ask_pooling: Any, pooler: Any) -> None:
    pooler.turns = 50
    texts = [f"text {number}" for number in range(1500)]
    found = vectors(ask_pooling("/v1/embeddings", {"input": texts}))
    assert pooler.most == 256
    for number in (0, 700, 1499):
        alone = vectors(ask_pooling("/v1/embeddings", {"input": texts[number]}))[0]
        assert (found[number] == alone).all()


def test_an_error_of_one_text_ends_the_others(ask_pooling: Any, pooler: Any) -> None:
    bad = pooler.tokenizer.encode("bad")[0]
    pooler.turns = 5
    for error, status in ((OctavoError("no number"), 500), (EngineDead("gone"), 503)):
        del pooler.opened[:]
        pooler.error = (bad, error)
        assert ask_pooling("/v1/embeddings", {"input": ["bad", *["good"] * 2000]}).status_code == status
        assert pooler.running == 0
        assert len(pooler.opened) < 300


def test_a_client_that_leaves_ends_what_it_asked_for(pooling: Service, backend: Any, pooler: Any) -> None:
    pooler.turns = 10**9

    async def leave() -> None:
        transport = httpx2.ASGITransport(http_app(pooling, backend))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            asked = asyncio.create_task(http.post("/v1/embeddings", json={"input": ["a"] * 500}))
            while pooler.running < 200:
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
        assert pooler.running == 0

    asyncio.run(leave())
    assert pooling.telemetry.tallies["tiny", "embeddings"].finished == {"abort": 1}


def test_the_sdk(pooling: Service, backend: Any, pooler: Any) -> None:
    async def talk() -> None:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(pooling, backend)))
        async with AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http, max_retries=0) as sdk:
            told = await sdk.embeddings.create(model="tiny", input=["Hello", "there"], dimensions=4)
            assert [len(one.embedding) for one in told.data] == [4, 4]
            with pytest.raises(BadRequestError):
                await sdk.embeddings.create(model="tiny", input="")
            pooler.full = Overloaded("full", retry_after=2.0)
            with pytest.raises(RateLimitError):
                await sdk.embeddings.create(model="tiny", input="Hello")

    asyncio.run(talk())


def test_a_model_of_vectors_writes_no_text(ask_pooling: Any) -> None:
    asked = {"messages": [{"role": "user", "content": "Hello"}]}
    question = {"type": "predicate", "instructions": "Polite?"}
    for path, body in (
        ("/v1/chat/completions", asked),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/decisions", {"input": "Hello", "questions": [question]}),
    ):
        refused = ask_pooling(path, body)
        assert refused.status_code == 400
        assert "tiny cannot generate text: it can make embeddings" in refused.json()["error"]["message"]
    assert ask_pooling("/v1/models", method="GET").json()["data"][0]["tasks"] == ["embed"]
