"""What real clients send, recorded in `make compat` and trimmed: each is answered in the form that the client reads."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from octavo_serve.api.access import Access
from octavo_serve.api.bounds import Limits
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.http.app import http_app
from octavo_serve.wire.messages import ModelInfo

RECORDED = Path(__file__).parents[1] / "compat" / "recorded"
LAST = {
    "/": '"generated_text":"',
    "/v1/chat/completions": "data: [DONE]",
    "/v1/responses": '"type":"response.completed"',
    "/v1/messages": '"type":"message_stop"',
}
POOLED = ("/v1/embeddings", "/v1/rerank", "/v2/rerank", "/v2/embed", "/models/tiny")
"""What only a model that samples nothing is asked for."""
WHOLE = {
    "/v1/chat/completions": ("object", "chat.completion"),
    "/v1/responses": ("object", "response"),
    "/v1/messages": ("type", "message"),
}


@pytest.mark.parametrize("file", sorted(RECORDED.glob("*.json")), ids=lambda file: file.stem)
def test_what_a_client_sends_is_answered(file: Path, client: Any, backend: Any, pooling: Service, pooler: Any) -> None:
    pooler.becomes("embed", dimensions=384, matryoshka=())
    info = ModelInfo("scripted", max_model_len=32768, vocab_size=client.tokenizer.vocab_size, block_size=16)

    async def describe() -> ModelInfo:
        return info

    client.describe = describe
    entry = ModelEntry("tiny", 1_700_000_000, client, tokenizer=client.tokenizer, info=info, shards=1)

    async def send() -> list[tuple[Any, httpx.Response]]:
        asked, service = json.loads(file.read_text()), Service(Registry([entry]), Limits(), Telemetry())
        async with posting(service, backend) as writes, posting(pooling, backend) as pools:
            return [(one, await (pools if one["path"] in POOLED else writes)(one)) for one in asked]

    for one, answer in asyncio.run(send()):
        path, body = one["path"].partition("?")[0], one["body"]
        assert answer.status_code == 200, (path, answer.text)
        if body.get("stream"):
            assert LAST[path] in "".join(answer.text.split("\n\n")[-3:]), answer.text
        elif path.endswith("count_tokens"):
            assert answer.json()["input_tokens"] > 0
        elif path in POOLED:
            check_pooled(path, body, answer.json())
        elif path == "/":
            assert answer.json()[0]["generated_text"].endswith("Paris.")
        elif path.endswith("/infer"):
            assert b"text_output" in answer.content
            assert ("inference-header-content-length" in answer.headers) == ("bytes" in one)
        else:
            name, kind = WHOLE[path]
            assert answer.json()[name] == kind


@asynccontextmanager
async def posting(service: Service, backend: Any) -> AsyncIterator[Callable[[Any], Awaitable[httpx.Response]]]:
    """Sends recorded requests to a server."""
    transport = httpx.ASGITransport(http_app(service, backend, Access()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield lambda one: http.post(one["path"], **sent(one))


def check_pooled(path: str, body: Any, answer: Any) -> None:
    if path.endswith("/rerank"):
        check_ranked(body, answer["results"])
    elif path == "/v1/embeddings":
        check_embedded(body, answer)
    elif path == "/v2/embed":
        assert [len(vector) for vector in answer["embeddings"]["float"]] == [384] * len(body["texts"])
    elif isinstance(body["inputs"], dict):
        assert len(answer) == len(body["inputs"]["sentences"])
    else:
        assert {len(vector) for vector in answer} == {384}


def check_embedded(body: Any, answer: Any) -> None:
    """A vector for each text, in the encoding asked for."""
    texts = body["input"] if isinstance(body["input"], list) and not isinstance(body["input"][0], int) else [None]
    found = [item["embedding"] for item in answer["data"]]
    if body.get("encoding_format") == "base64":
        found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
    assert [len(vector) for vector in found] == [body.get("dimensions", 384)] * len(texts)
    assert [item["index"] for item in answer["data"]] == list(range(len(texts)))
    assert answer["usage"]["total_tokens"] >= len(texts)


def check_ranked(body: Any, results: Any) -> None:
    """A score for each document, the best first."""
    scores = [item["relevance_score"] for item in results]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == body.get("top_n", len(body["documents"]))
    for item in results if body.get("return_documents") else ():
        assert item["document"] == {"text": body["documents"][item["index"]]}


def sent(one: Any) -> dict[str, Any]:
    """A body, and the bytes that follow its JSON if there are any."""
    if "bytes" not in one:
        return {"json": one["body"]}
    head = json.dumps(one["body"]).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return {"content": head + one["bytes"].encode("latin-1"), "headers": headers}
