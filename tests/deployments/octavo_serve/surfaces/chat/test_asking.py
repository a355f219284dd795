"""What a chat's body asks for: what real clients send is accepted, what is wrong or unsupported is named."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.chats import Chat
from octavo_serve.api.service import Service
from octavo_serve.surfaces.chat.asking import ask
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT

LIMITS = Limits(max_prompts=3, max_n=4)
HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}

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


REFUSED_CHATS = [
    ({"temperature": "hot"}, "temperature", "must be a valid number"),
    ({"temperature": -1}, "temperature", "at least 0"),
    ({"temperature": True}, "temperature", "must be a valid number"),
    ({"max_tokens": -1}, "max_tokens", "at least 1"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
    ({"n": 0}, "n", "at least 1"),
    ({"prediction": {"type": "text", "content": "a"}}, "prediction", 'must be {"type": "content"'),
    ({"prediction": {"type": "content", "content": [{"type": "text", "text": 1}]}}, "prediction", "a list of parts"),
    ({"prediction": {"type": "content", "content": "a", "more": 1}}, "prediction", "must be"),
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
    ({"response_format": {"type": "xml"}}, "response_format.type", "must be"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens", "at least 0"),
    ({"thinking_token_budget": 3, "reasoning": {"max_tokens": 4}}, "reasoning.max_tokens", "exclude each other"),
    ({"functions": [{"name": "f"}]}, "functions", "send tools"),
    ({"modalities": ["text", "audio"]}, "modalities", "only the modality"),
    ({"guided_json": {"type": "object"}, "guided_choice": ["a"]}, "guided_choice", "exclude each other"),
    ({"guided_choice": "a"}, "guided_choice", "valid list"),
    ({"bad_words": ["a"] * 257}, "bad_words", "at most 256 entries"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids.0", "greater than or equal to 0"),
]


@pytest.mark.parametrize(("extra", "param", "sentence"), REFUSED_CHATS)
def test_what_is_wrong_is_named(extra: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence.replace("?", r"\?")) as caught:
        CHAT.ask(parse(ChatRequest, HELLO | extra), LIMITS)
    assert caught.value.param == param


OF_CHATS: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 0}, {"logprobs": True, "top_logprobs": 20}, {"logprobs": False},
    {"logprobs": False, "top_logprobs": 0}, {"max_completion_tokens": 1}, {"max_completion_tokens": None},
    {"max_tokens": 0, "max_completion_tokens": 5}, {"tool_choice": "none"}, {"tool_choice": None},
    {"messages": [{"role": "developer", "content": "Be brief.", "name": "d"}, {"role": "user", "content": "Hi"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [], "refusal": None}]},
    {"messages": [{"role": "tool", "content": "4", "tool_call_id": "c"}]},
]  # fmt: skip


@pytest.mark.parametrize("extra", OF_CHATS, ids=str)
def test_values_that_openai_documents_are_valid(extra: dict[str, Any]) -> None:
    for body in (HELLO | extra, json.dumps(HELLO | extra).encode()):
        ask(parse(ChatRequest, body), LIMITS)


def test_tools_stay_out_of_the_prompt_where_none_may_be_called() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    for choice, tools in (("auto", [tool]), ("none", None)):
        asked = ask(parse(ChatRequest, HELLO | {"tools": [tool], "tool_choice": choice}), LIMITS)
        assert getattr(asked.content, "tools", "") == tools


def chat(service: Service, **extra: Any) -> Any:
    return asyncio.run(service.answer(CHAT, parse(ChatRequest, HELLO | extra)))


@pytest.mark.parametrize(
    ("asked", "variables"),
    [
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning": {"effort": "high"}}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": {"type": "enabled"}}, {"enable_thinking": True, "thinking": True}),
        ({"reasoning": {"enabled": True}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": 3}},
         {"enable_thinking": True, "thinking": 3}),
    ],
)  # fmt: skip
def test_what_is_asked_of_reasoning_reaches_the_template(
    service: Service, client: Any, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], variables: dict[str, Any]
) -> None:
    source = "{{ reasoning_effort }}|{{ enable_thinking }}|{{ thinking }}"
    monkeypatch.setattr(client.tokenizer, "chat_templates", {"default": source})
    chat(service, **asked)
    names = ("reasoning_effort", "enable_thinking", "thinking")
    expected = "|".join(str(variables.get(name, "")) for name in names)
    assert client.tokenizer.decode(client.opened[-1].prompt_token_ids) == expected


def test_a_choice_of_tools_and_a_budget_reach_the_chat() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    named = {"type": "function", "function": {"name": "f"}}
    content = ask(parse(ChatRequest, HELLO | {"tools": tools, "tool_choice": named}), LIMITS).content
    assert isinstance(content, Chat)
    assert (content.must_call, content.one_call, content.callable_tools) == (True, True, frozenset("f"))
    for extra, param in (
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, "thinking.budget_tokens"),
        ({"thinking_token_budget": 7}, "thinking_token_budget"),
        ({"reasoning": {"max_tokens": 7}}, "reasoning.max_tokens"),
    ):
        content = ask(parse(ChatRequest, HELLO | extra), LIMITS).content
        assert isinstance(content, Chat)
        assert (content.thinking_budget, content.thinking_param) == (7, param)
