"""What one request makes, however much it is at once, is made in slices: others have their turn in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from octavo.errors import BadRequest
from octavo.request import Logprob, Request, SequenceUpdate
from octavo_serve.api.service import Service
from octavo_serve.api.turns import Turns
from octavo_serve.http.replies import to_json, to_json_in_slices
from octavo_serve.surfaces.openai.conversion import check_prompt_logprobs, parse
from octavo_serve.surfaces.openai.schemas import ChatRequest, CompletionRequest

STEPS = 500


@pytest.mark.parametrize("asked", [{}, {"logprobs": 20}])
def test_a_stream_that_was_not_read_for_long_is_caught_up_with_in_turns(
    service: Service, client: Any, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    pauses = 0
    others = Turns.pause

    async def counted(turns: Turns) -> None:
        nonlocal pauses
        pauses += 1
        await others(turns)

    async def at_once(request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        entries = None if request.params.logprobs is None else [{70 + i: Logprob(-1.0 - i, i + 1) for i in range(20)}]
        for step in range(STEPS):
            reason = "length" if step == STEPS - 1 else None
            yield [SequenceUpdate(request.request_id, i, [70], entries, finish_reason=reason) for i in range(4)]

    async def run() -> list[Any]:
        body = parse(CompletionRequest, {"prompt": "Hello", "stream": True, "n": 4, "max_tokens": 200} | asked)
        async with aclosing(service.complete_stream(body)) as stream:
            first = await anext(stream)
            return [first, *[chunk async for chunk in stream]]

    monkeypatch.setattr(Turns, "pause", counted)
    monkeypatch.setattr("octavo_serve.api.turns.SLICE", 0.0)
    client.generate = at_once
    chunks = asyncio.run(run())
    assert sum(len(choice["text"]) for chunk in chunks for choice in chunk["choices"]) == 4 * STEPS
    assert pauses > 4 * STEPS  # between any two updates


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_an_answer_in_slices_is_the_same_answer(count: int) -> None:
    top = [{"a": -0.5, "é": -1.0}] * count
    logprobs = {"tokens": ["a"] * count, "top_logprobs": top, "token_logprobs": [None, *[-0.5] * count]}
    of_prompt = [None, *[{"7": {"rank": 1}}] * count]
    choice = {"index": 0, "text": 'a"é\n', "logprobs": logprobs, "prompt_logprobs": of_prompt}
    for answer in (
        {"id": "x", "choices": [choice] * 3, "usage": {"prompt_tokens": 7}},
        {"id": "x", "choices": [], "usage": None},
        {"choices": [{"logprobs": {"content": top, "refusal": None}}], "prompt_logprobs": top},
    ):
        assert to_json_in_slices(answer) == to_json(answer)
        assert msgspec.json.decode(to_json_in_slices(answer)) == answer


def test_prompt_log_probabilities_have_a_bound_over_all_choices() -> None:
    echo = parse(CompletionRequest, {"prompt": "a", "echo": True, "logprobs": 20, "prompt_logprobs": 20})
    check_prompt_logprobs(40_000, echo)
    with pytest.raises(BadRequest, match="at most 2097152 fit one"):
        check_prompt_logprobs(8_000, echo.model_copy(update={"n": 128}))
    chat = parse(ChatRequest, {"messages": [{"role": "user", "content": "a"}], "prompt_logprobs": 20, "n": 128})
    check_prompt_logprobs(90_000, chat)  # a chat's answer says them once
    check_prompt_logprobs(10**9, parse(CompletionRequest, {"prompt": "a", "n": 128, "logprobs": 20}))
