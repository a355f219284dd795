"""What a completion's body asks for: what real clients send is accepted, what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.surfaces.completions.asking import ask
from octavo_serve.surfaces.completions.schemas import CompletionRequest

LIMITS = Limits(max_prompts=3, max_n=4)
PROMPT: dict[str, Any] = {"model": "m", "prompt": "Hello"}


def test_what_lm_eval_sends_is_accepted() -> None:
    extra = {"prompt": [[1, 2], [3]], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
    body = parse(CompletionRequest, json.dumps({"model": "m"} | extra).encode())
    asked = ask(body, LIMITS)
    assert (asked.params.prompt_logprobs, asked.params.logprobs, asked.params.max_tokens) == (1, 1, 1)
    assert asked.content == [[1, 2], [3]]


REFUSED_COMPLETIONS = [
    ({"suffix": "end"}, "suffix", "fill in the middle"),
    ({"prompt": []}, "prompt", "must not be empty"),
    ({"prompt": [[]]}, "prompt", "must not be empty"),
    ({"prompt": ["a"] * 4}, "prompt", "at most 3 prompts"),
    ({"prompt": {"a": 1}}, "prompt", "must be a string, a list of strings, a list of token ids or a list of such"),
    ({"prompt": [1, "a"]}, "prompt", "must be a string, .*: Expected int, got str"),
    ({"prompt": [-1]}, "prompt", "must be a string, .*: Expected int >= 0"),
    ({"prompt": [2**31]}, "prompt", "must be a string, .*: Expected int <= 2147483647"),
    ({"prompt": ["a", None]}, "prompt", "must be a string, .*: Expected str, got null"),
    ({"prompt": [[1], ["a"]]}, "prompt", "must be a string, .*: Expected int, got str"),
    ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
    ({"n": 2, "best_of": 1}, "best_of", "at least 2"),
    ({"max_tokens": -1}, "max_tokens", "at least 0"),
]


@pytest.mark.parametrize(("extra", "param", "sentence"), REFUSED_COMPLETIONS)
def test_what_is_wrong_in_a_completion_is_named(extra: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence) as caught:
        ask(parse(CompletionRequest, PROMPT | extra), LIMITS)
    assert caught.value.param == param


OF_COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": ""}, {"prompt": None}, {"prompt": [""]}, {"prompt": ["a", ""]}, {"prompt": [1.0, 2]},
    {"prompt": [[1], [2.0]]},
    {"max_tokens": 0}, {"max_tokens": 0, "echo": True}, {"echo": None}, {"logprobs": 0}, {"logprobs": 5},
    {"suffix": ""},
    {"best_of": 0}, {"best_of": 2}, {"best_of": None, "n": None}, {"suffix": None},
]  # fmt: skip


@pytest.mark.parametrize("extra", OF_COMPLETIONS, ids=str)
def test_values_that_openai_documents_are_valid(extra: dict[str, Any]) -> None:
    for body in (PROMPT | extra, json.dumps(PROMPT | extra).encode()):
        ask(parse(CompletionRequest, body), LIMITS)


@pytest.mark.parametrize(
    ("prompt", "content"),
    [(None, [""]), ("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
    ids=str,
)
def test_a_prompt_alone_is_a_list_of_one(prompt: Any, content: list[Any]) -> None:
    assert ask(parse(CompletionRequest, {"prompt": prompt}), LIMITS).content == content


def test_the_sequences_of_a_request_have_a_limit() -> None:
    limits = Limits(max_prompts=1024, max_n=128)
    body = parse(CompletionRequest, {"prompt": ["a"] * 100, "n": 41})
    with pytest.raises(BadRequest, match="at most 4096 sequences"):
        ask(body, limits)
