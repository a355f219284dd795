"""/tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import Any

from octavo_serve.api.body import parse
from octavo_serve.api.operation import Call
from octavo_serve.api.service import Service
from octavo_serve.surfaces.tokens.operations import detokenize, tokenize
from octavo_serve.surfaces.tokens.schemas import DetokenizeRequest, TokenizeRequest

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def test_tokenize_and_back(service: Service, talk: Any, client: Any) -> None:
    found: Any = asyncio.run(
        tokenize(service, Call(body=parse(TokenizeRequest, {"prompt": "Hello", "return_token_strs": True})))
    )
    assert found == {
        "count": 1,
        "max_model_len": 256,
        "tokens": client.tokenizer.encode("Hello"),
        "token_strs": ["Hello"],
    }
    chat_ids: Any = asyncio.run(tokenize(service, Call(body=parse(TokenizeRequest, {"messages": HELLO["messages"]}))))
    talk.chat()
    assert chat_ids["tokens"] == client.opened[0].prompt_token_ids
    back = asyncio.run(detokenize(service, Call(body=parse(DetokenizeRequest, {"tokens": found["tokens"]}))))
    assert back == {"prompt": "Hello"}


def test_a_long_text_is_the_same_from_its_thread(service: Service, client: Any) -> None:
    text = "word, " * 5000
    found: Any = asyncio.run(tokenize(service, Call(body=parse(TokenizeRequest, {"prompt": text}))))
    assert found["tokens"] == client.tokenizer.encode(text)
