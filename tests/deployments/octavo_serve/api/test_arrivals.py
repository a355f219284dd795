"""Several requests as one stream: bounded while nobody reads, complete in the end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from octavo.request import Request, SamplingParams
from octavo_serve.api import arrivals
from octavo_serve.api.arrivals import Arrivals


def test_what_nobody_reads_waits_in_the_requests_streams(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MANY", 5)
    client.texts = ["one two three four five six seven eight nine ten"]
    asked = [
        Request(request_id=name, prompt_token_ids=[1], params=SamplingParams(max_tokens=30)) for name in ("a", "b", "c")
    ]

    async def scenario() -> None:
        merged = Arrivals(client, asked)
        async with aclosing(merged):
            updates = list(await anext(merged))
            for _ in range(200):  # the scripted client says a token in each
                await asyncio.sleep(0)
            assert 5 < len(merged._arrived) <= 5 + len(asked)
            async for more in merged:
                updates += more
        for request in asked:
            ours = [update for update in updates if update.request_id == request.request_id]
            assert ours[-1].finish_reason == "stop"
            assert len(ours) == len(client._tokens(0, request))
        assert sorted(client.closed) == ["a", "b", "c"]

    asyncio.run(scenario())
