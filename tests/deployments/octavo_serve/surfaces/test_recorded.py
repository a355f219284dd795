"""What real clients send, recorded in `make compat` and trimmed: each is answered in the form that the client reads."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
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
WHOLE = {
    "/v1/chat/completions": ("object", "chat.completion"),
    "/v1/responses": ("object", "response"),
    "/v1/messages": ("type", "message"),
}


@pytest.mark.parametrize("file", sorted(RECORDED.glob("*.json")), ids=lambda file: file.stem)
def test_what_a_client_sends_is_answered(file: Path, client: Any, backend: Any) -> None:
    info = ModelInfo("scripted", max_model_len=32768, vocab_size=client.tokenizer.vocab_size, block_size=16)

    async def describe() -> ModelInfo:
        return info

    client.describe = describe
    entry = ModelEntry("tiny", 1_700_000_000, client, tokenizer=client.tokenizer, info=info, shards=1)

    async def send() -> list[tuple[Any, httpx.Response]]:
        app = http_app(Service(Registry([entry]), Limits(), Telemetry()), backend, Access())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            asked = json.loads(file.read_text())
            return [(one, await http.post(one["path"], **sent(one))) for one in asked]

    for one, answer in asyncio.run(send()):
        path, body = one["path"].partition("?")[0], one["body"]
        assert answer.status_code == 200, (path, answer.text)
        if body.get("stream"):
            assert LAST[path] in "".join(answer.text.split("\n\n")[-3:]), answer.text
        elif path.endswith("count_tokens"):
            assert answer.json()["input_tokens"] > 0
        elif path == "/":
            assert answer.json()[0]["generated_text"].endswith("Paris.")
        elif path.endswith("/infer"):
            assert b"text_output" in answer.content
            assert ("inference-header-content-length" in answer.headers) == ("bytes" in one)
        else:
            name, kind = WHOLE[path]
            assert answer.json()[name] == kind


def sent(one: Any) -> dict[str, Any]:
    """A body, and the bytes that follow its JSON if there are any."""
    if "bytes" not in one:
        return {"json": one["body"]}
    head = json.dumps(one["body"]).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return {"content": head + one["bytes"].encode("latin-1"), "headers": headers}
