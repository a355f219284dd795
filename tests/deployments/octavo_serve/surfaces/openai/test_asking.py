"""Bodies: what real clients send is accepted, what is wrong or unsupported is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.errors import BadRequest, PromptTooLong
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.prompts import check_length
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS

LIMITS = Limits(max_prompts=3, max_n=4)
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
PROMPT: dict[str, Any] = {"model": "m", "prompt": "Hello"}

ACCEPTED_CHATS = {
    "openai agents": {
        "logprobs": True, "top_logprobs": 3, "max_completion_tokens": 9, "parallel_tool_calls": True, "seed": 1,
        "response_format": {"type": "text"}, "stream": True, "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "auto",
        "store": False, "metadata": {"a": "b"}, "user": "u", "service_tier": "auto", "modalities": ["text"],
        "prompt_cache_key": "k", "safety_identifier": "s", "verbosity": "medium", "prediction": None,
    },
    "guidellm": {"max_completion_tokens": 9, "max_tokens": 9, "ignore_eos": True, "stop": None, "stream": True},
    "reasoning clients": {"top_k": 5, "thinking": {"type": "disabled"}, "reasoning": {}, "reasoning_effort": "low"},
    "vllm": {
        "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "stop_token_ids": [2], "prompt_logprobs": 0,
        "add_generation_prompt": False, "continue_final_message": True, "chat_template_kwargs": {"a": 1},
        "cache_salt": "s", "priority": 1, "include_stop_str_in_output": True, "skip_special_tokens": False,
    },
    "nulls": dict.fromkeys(["temperature", "top_p", "n", "stop", "logprobs", "max_tokens", "tools", "logit_bias"]),
}  # fmt: skip


@pytest.mark.parametrize("extra", ACCEPTED_CHATS.values(), ids=ACCEPTED_CHATS.keys())
def test_what_clients_send_is_accepted(extra: dict[str, Any]) -> None:
    for body in (HELLO | extra, json.dumps(HELLO | extra).encode()):
        CHAT.ask(parse(ChatRequest, body), LIMITS)


def test_what_lm_eval_sends_is_accepted() -> None:
    extra = {"prompt": [[1, 2], [3]], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
    body = parse(CompletionRequest, json.dumps({"model": "m"} | extra).encode())
    asked = COMPLETIONS.ask(body, LIMITS)
    assert (asked.params.prompt_logprobs, asked.params.logprobs, asked.params.max_tokens) == (1, 1, 1)
    assert asked.content == [[1, 2], [3]]


REFUSED_CHATS = [
    ({"temperature": "hot"}, "temperature", "must be a valid number"),
    ({"temperature": -1}, "temperature", "at least 0"),
    ({"temperature": True}, "temperature", "must be a valid number"),
    ({"max_tokens": -1}, "max_tokens", "at least 1"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
    ({"n": 0}, "n", "at least 1"),
    ({"n": 5}, "n", "at most 4"),
    ({"best_of": 2}, "best_of", "use n"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs", "at most 20"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "at most 100"),
    ({"stop": ["a"] * 17}, "stop", "at most 16 entries"),
    ({"stop": ["a" * 1025]}, "stop.0", "at most 1024 characters"),
    ({"stop": ["a", ""]}, "stop", "strings of 1 to 1024 characters"),
    ({"stop": 3}, "stop", "must be str or"),
    ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"stream_options": {"includ_usage": True}}, "stream_options.includ_usage", "did you mean 'include_usage'?"),
    ({"messages": "hello"}, "messages", "valid list"),
    ({"messages": [{"content": "x"}]}, "messages.0.role", "required"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content", "must be str or"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported yet"),
    ({"tool_choice": "required"}, "tool_choice", "not supported yet"),
    ({"functions": [{"name": "f"}]}, "functions", "send tools"),
    ({"modalities": ["text", "audio"]}, "modalities", "only the modality"),
    ({"guided_json": {}, "guided_choice": ["a"]}, "guided_choice", "not supported"),
]


@pytest.mark.parametrize(("extra", "param", "sentence"), REFUSED_CHATS)
def test_what_is_wrong_is_named(extra: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence.replace("?", r"\?")) as caught:
        CHAT.ask(parse(ChatRequest, HELLO | extra), LIMITS)
    assert caught.value.param == param


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
    ({"max_tokens": -1}, "max_tokens", "at least 1"),
]


@pytest.mark.parametrize(("extra", "param", "sentence"), REFUSED_COMPLETIONS)
def test_what_is_wrong_in_a_completion_is_named(extra: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence) as caught:
        _checked_completion(PROMPT | extra)
    assert caught.value.param == param


def _checked_completion(sent: dict[str, Any]) -> None:
    COMPLETIONS.ask(parse(CompletionRequest, sent), LIMITS)


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe{}", b'{"prompt": "\xff"}', b"[]", b"nul", b'{"prompt": "\\ud800"}'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(CompletionRequest, body)


def test_lengths() -> None:
    check_length(10, 6, 16, "prompt")
    with pytest.raises(PromptTooLong, match="ask for at most 6"):
        check_length(10, 7, 16, "prompt")
    with pytest.raises(PromptTooLong, match="shorten it"):
        check_length(16, None, 16, "prompt")


@pytest.mark.parametrize("name", ["messages[0]", "int", "str", "a[b]", "constrained-x", ""])
def test_an_unknown_field_may_be_called_anything(name: str) -> None:
    with pytest.raises(BadRequest, match="unknown field") as caught:
        parse(CompletionRequest, PROMPT | {name: 1})
    assert caught.value.param == (name or None)


DOCUMENTED: list[dict[str, Any]] = [
    {"top_p": 0}, {"top_p": 1}, {"n": 2.0}, {"n": 1}, {"temperature": 0}, {"temperature": 2}, {"temperature": 2.0},
    {"presence_penalty": -2}, {"presence_penalty": 2.0}, {"frequency_penalty": -2.0}, {"frequency_penalty": 2},
    {"logit_bias": {"50": -100}}, {"logit_bias": {"50": 100.0}}, {"logit_bias": {}}, {"logit_bias": None},
    {"stop": None}, {"stop": ""}, {"stop": "a"}, {"stop": []}, {"stop": ["a", "b", "c", "d"]},
    {"seed": -(2**63)}, {"seed": 2**63 - 1}, {"seed": 1.0}, {"seed": -1}, {"max_tokens": None}, {"max_tokens": 3.0},
    {"stream": None}, {"stream": False}, {"stream_options": None}, {"user": ""}, {"metadata": {}}, {"store": None},
]  # fmt: skip
OF_CHATS: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 0}, {"logprobs": True, "top_logprobs": 20}, {"logprobs": False},
    {"logprobs": False, "top_logprobs": 0}, {"max_completion_tokens": 1}, {"max_completion_tokens": None},
    {"max_tokens": 0, "max_completion_tokens": 5}, {"tool_choice": "none"}, {"tool_choice": None},
    {"messages": [{"role": "developer", "content": "Be brief.", "name": "d"}, {"role": "user", "content": "Hi"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [], "refusal": None}]},
    {"messages": [{"role": "tool", "content": "4", "tool_call_id": "c"}]},
]  # fmt: skip
OF_COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": ""}, {"prompt": None}, {"prompt": [""]}, {"prompt": ["a", ""]}, {"prompt": [1.0, 2]},
    {"prompt": [[1], [2.0]]},
    {"max_tokens": 0}, {"max_tokens": 0, "echo": True}, {"echo": None}, {"logprobs": 0}, {"logprobs": 5},
    {"suffix": ""},
    {"best_of": 0}, {"best_of": 2}, {"best_of": None, "n": None}, {"suffix": None},
]  # fmt: skip


@pytest.mark.parametrize("extra", DOCUMENTED + OF_CHATS, ids=str)
def test_values_that_openai_documents_are_valid_in_chats(extra: dict[str, Any]) -> None:
    for body in (HELLO | extra, json.dumps(HELLO | extra).encode()):
        CHAT.ask(parse(ChatRequest, body), LIMITS)


@pytest.mark.parametrize("extra", DOCUMENTED + OF_COMPLETIONS, ids=str)
def test_values_that_openai_documents_are_valid_in_completions(extra: dict[str, Any]) -> None:
    for body in (PROMPT | extra, json.dumps(PROMPT | extra).encode()):
        _checked_completion(body)  # type: ignore[arg-type]


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


def test_the_sequences_of_a_request_have_a_limit() -> None:
    limits = Limits(max_prompts=1024, max_n=128)
    body = parse(CompletionRequest, {"prompt": ["a"] * 100, "n": 41})
    with pytest.raises(BadRequest, match="at most 4096 sequences"):
        COMPLETIONS.ask(body, limits)


@pytest.mark.parametrize("key", ["x", "-1", "1.5", " 1", "1_0", "１", "9" * 5000, ""])
def test_keys_of_logit_bias_are_token_ids(key: str) -> None:
    with pytest.raises(BadRequest, match="must be token ids"):
        CHAT.ask(parse(ChatRequest, HELLO | {"logit_bias": {key: 1}}), LIMITS)
