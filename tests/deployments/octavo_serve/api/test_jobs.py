"""What a request is known by, and when a job's log probabilities are too many to be written on the event loop."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.request import Request, SamplingParams
from octavo_serve.api.chats import Chat, Message
from octavo_serve.api.jobs import MANY, Asked, Job


def job_of(prompt_lengths: list[int], **params: Any) -> Job:
    anything: Any = None
    sampling = SamplingParams(**params)
    prompts = [[1] * length for length in prompt_lengths]
    requests = [Request(request_id=f"r-{i}", prompt_token_ids=ids, params=sampling) for i, ids in enumerate(prompts)]
    return Job("r", 0, anything, "m", sampling, requests, [], None, anything)


def key_of(content: Any, **other: Any) -> bytes:
    return Asked(kind="c", model="m", content=content, param="prompt", params=SamplingParams(), **other).key()


def chat_of(*contents: Any) -> Chat:
    return Chat(messages=[Message(role="user", content=content) for content in contents])


def test_a_request_is_known_again_and_told_from_others() -> None:
    part: dict[str, Any] = {"type": "text", "text": "Hello"}
    contents: list[Any] = [
        ["Hello"], ["Hello", "Hello"], ["hello"], [""], [[1, 2, 3]], [[1, 2, 4]], ["x" * 5000], ["x" * 5001],
        [[1] * 5000], chat_of("Hello"), chat_of("Well", "Hello"), chat_of([part]),
        chat_of([part, part]), chat_of(None),
    ]  # fmt: skip
    keys = {key_of(content) for content in contents}
    assert keys == {key_of(content) for content in contents}
    keys |= {key_of(["Hello"], session="s"), key_of(["Hello"], cache_salt="s"), key_of(["\ud800"])}
    assert len(keys) == len(contents) + 3


def test_a_request_counts_as_the_sequences_and_about_the_tokens_that_it_becomes() -> None:
    part: dict[str, Any] = {"type": "text", "text": "x" * 4000}

    def size(content: Any, **params: Any) -> tuple[int, int]:
        return Asked(kind="c", model="m", content=content, param="prompt", params=SamplingParams(**params)).size

    assert size(["x" * 4000, [1] * 10], n=3) == (6, 1010)
    assert size(["x"], n=1, best_of=5) == (5, 0)
    assert size(chat_of("x" * 400, None)) == (1, 100)
    assert size(chat_of([part, part], "x" * 4000), n=2) == (2, 3000)


def test_prompt_tokens_are_those_of_all_prompts() -> None:
    assert job_of([3, 4]).prompt_tokens == 7


@pytest.mark.parametrize(
    ("params", "prompt_tokens", "tokens", "large"),
    [
        ({}, 10**6, 10**6, False),  # none were asked for
        ({"logprobs": 0}, 10**6, MANY, False),
        ({"logprobs": 0}, 0, MANY + 1, True),
        ({"logprobs": 9}, 10**6, MANY // 10, False),  # the token itself and nine alternatives
        ({"logprobs": 9}, 0, MANY // 10 + 1, True),
        ({"prompt_logprobs": 0}, MANY, 10**6, False),
        ({"prompt_logprobs": 0}, MANY + 1, 0, True),
        ({"prompt_logprobs": 0, "logprobs": 0}, MANY // 2, MANY // 2 + 1, True),
    ],
)
def test_values_of_prompts_and_answers_count_together(
    params: dict[str, Any], prompt_tokens: int, tokens: int, large: bool
) -> None:
    assert job_of([1], **params).is_large(prompt_tokens, tokens) is large
