"""What chats and completions take alike: documented values, one limit of n, integers of 64 bits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS

LIMITS = Limits(max_prompts=3, max_n=4)
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
PROMPT: dict[str, Any] = {"model": "m", "prompt": "Hello"}


DOCUMENTED: list[dict[str, Any]] = [
    {"top_p": 0}, {"top_p": 1}, {"n": 2.0}, {"n": 1}, {"temperature": 0}, {"temperature": 2}, {"temperature": 2.0},
    {"presence_penalty": -2}, {"presence_penalty": 2.0}, {"frequency_penalty": -2.0}, {"frequency_penalty": 2},
    {"logit_bias": {"50": -100}}, {"logit_bias": {"50": 100.0}}, {"logit_bias": {}}, {"logit_bias": None},
    {"stop": None}, {"stop": ""}, {"stop": "a"}, {"stop": []}, {"stop": ["a", "b", "c", "d"]},
    {"seed": -(2**63)}, {"seed": 2**63 - 1}, {"seed": 1.0}, {"seed": -1}, {"max_tokens": None}, {"max_tokens": 3.0},
    {"stream": None}, {"stream": False}, {"stream_options": None}, {"user": ""}, {"metadata": {}}, {"store": None},
]  # fmt: skip


@pytest.mark.parametrize("extra", DOCUMENTED, ids=str)
def test_values_that_openai_documents_are_valid_in_chats(extra: dict[str, Any]) -> None:
    for body in (HELLO | extra, json.dumps(HELLO | extra).encode()):
        CHAT.ask(parse(ChatRequest, body), LIMITS)


@pytest.mark.parametrize("extra", DOCUMENTED, ids=str)
def test_values_that_openai_documents_are_valid_in_completions(extra: dict[str, Any]) -> None:
    for body in (PROMPT | extra, json.dumps(PROMPT | extra).encode()):
        COMPLETIONS.ask(parse(CompletionRequest, body), LIMITS)


@pytest.mark.parametrize("value", [2**63, 2**64, 2**70, -(2**63) - 1, 10**30, 1e300])
@pytest.mark.parametrize(
    "name",
    ["n", "best_of", "top_k", "seed", "min_tokens", "max_tokens", "prompt_logprobs", "priority",
     "max_completion_tokens", "top_logprobs", "stop_token_ids", "logit_bias"],
)  # fmt: skip
def test_integers_beyond_64_bits_are_refused_by_name(name: str, value: float) -> None:
    sent: Any = {"stop_token_ids": [value], "logit_bias": {str(int(value)): 1}}.get(name, value)
    with pytest.raises(BadRequest) as caught:
        CHAT.ask(parse(ChatRequest, HELLO | {name: sent}), LIMITS)
    assert str(caught.value.param).partition(".")[0] == name


@pytest.mark.parametrize("n", [0, -1, 5, 100, 2**40])
def test_n_has_one_limit(n: int) -> None:
    for name in ("n", "best_of"):
        if name == "best_of" and n == 0:
            continue  # OpenAI's way to say that it is not used
        with pytest.raises(BadRequest, match=f"{name} must be at least 1 and at most 4, got {n}"):
            CHAT.ask(parse(ChatRequest, HELLO | {name: n}), LIMITS)
