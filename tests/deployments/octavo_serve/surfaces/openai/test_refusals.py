"""What is accepted is done or asks for nothing; what is not done is refused with a sentence that names it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.service import Service
from octavo_serve.http.describe import openapi
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.openai.asking import check_supported
from octavo_serve.surfaces.openai.refusals import RULES
from octavo_serve.surfaces.openai.schemas import NOT_SUPPORTED
from octavo_serve.surfaces.served import SURFACES

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}

REFUSED: list[dict[str, Any]] = [
    {"store": True},
    {"service_tier": "flex"},
    {"prompt_cache_retention": "24h"},
    {"response_format": {"type": "json_schema", "json_schema": {}}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": {}, "reasoning": {"max_tokens": 5}},
    {"length_penalty": 2.0},
    {"verbosity": "low"},
    {"include_reasoning": False},
    {"modalities": ["audio"]},
    {"functions": [{"name": "f"}]},
    {"function_call": {"name": "f"}},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "look_up"}}, "tools": [TOOL]},
    {"parallel_tool_calls": False, "tools": [TOOL]},
    {"spaces_between_special_tokens": True, "skip_special_tokens": False},
    {"stream_options": {"include_obfuscation": True}, "stream": True},
    {"prediction": {"type": "content", "content": "x"}},
    {"mm_processor_kwargs": {"a": 1}},
    {"vllm_xargs": {"a": 1}},
    {"documents": [{}]},
]


@pytest.mark.parametrize("extra", REFUSED, ids=str)
def test_what_is_not_done_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        check_supported(parse(ChatRequest, HELLO | extra), Limits())
    assert caught.value.param is not None
    assert {caught.value.param, caught.value.param.partition(".")[0]} & extra.keys()


HARMLESS: list[dict[str, Any]] = [
    {"store": False, "service_tier": "auto", "parallel_tool_calls": True, "tools": [TOOL]},
    {"service_tier": "default", "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s"},
    {"parallel_tool_calls": False},  # no tools: there is no call at all
    {"spaces_between_special_tokens": True},  # special tokens are not shown
    {"verbosity": "medium", "modalities": ["text"], "include_reasoning": True, "length_penalty": 1.0},
    {"response_format": {"type": "text"}, "prediction": None, "audio": None, "functions": [], "function_call": "none"},
    {"guided_json": None, "bad_words": [], "allowed_token_ids": [], "use_beam_search": False, "vllm_xargs": {}},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"thinking": {"type": "disabled"}, "reasoning": {}, "reasoning_effort": "none"},
    {"tool_choice": "auto"}, {"tools": [], "tool_choice": "none"}, {"stream_options": None}, {"n": None},
]  # fmt: skip


@pytest.mark.parametrize("extra", HARMLESS, ids=str)
def test_what_clients_send_by_default_is_accepted(extra: dict[str, Any]) -> None:
    check_supported(parse(ChatRequest, HELLO | extra), Limits())


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_every_value_that_the_description_allows_is_accepted_and_no_other(kind: Any) -> None:
    needed = HELLO if kind is ChatRequest else {"prompt": "a"}
    looked_at = {
        name: field.json_schema_extra["enum"]
        for name, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and "enum" in field.json_schema_extra
    }
    assert {name for name in looked_at if kind.model_fields[name].description != NOT_SUPPORTED} <= RULES.keys()
    for name, allowed in looked_at.items():
        for value in allowed:
            check_supported(parse(kind, needed | {name: value}), Limits())
        for value in ("no", 7, True, False, ["no"], {"a": 1}):
            if value not in allowed:
                with pytest.raises(BadRequest, match=name.partition("_")[0]):
                    check_supported(parse(kind, needed | {name: value}), Limits())
    assert openapi(SURFACES)


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


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning": {"effort": "high"}}, "reasoning_effort"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
    ],
)
def test_a_model_without_reasoning_says_so(service: Service, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest, match="this model") as caught:
        chat(service, **asked)
    assert caught.value.param == param
    for harmless in ({"reasoning_effort": "medium"}, {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}):
        assert chat(service, **harmless)["choices"]


@pytest.mark.parametrize(
    ("tool", "wrong"),
    [
        ("f", r"tools\[0\] must be an object"),
        ({}, r"tools\[0\].type must be"),
        ({"type": "custom", "custom": {}}, r"tools\[0\].type must be"),
        ({"type": "function"}, "function must be an object"),
        ({"type": "function", "function": {}}, "name must be"),
        ({"type": "function", "function": {"name": ""}}, "name must be"),
        ({"type": "function", "function": {"name": "a b"}}, "name must be"),
        ({"type": "function", "function": {"name": "a\n"}}, "name must be"),
        ({"type": "function", "function": {"name": "a" * 65}}, "name must be"),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, "parameters must be"),
        ({"type": "function", "function": {"name": "f", "description": 1}}, "description must be"),
        ({"type": "function", "function": {"name": "f", "strict": "yes"}}, "strict must be"),
    ],
)
def test_malformed_tools_are_refused(tool: object, wrong: str) -> None:
    with pytest.raises(BadRequest, match=wrong) as caught:
        parse(ChatRequest, HELLO | {"tools": [tool]})
    assert caught.value.param == "tools"


def test_a_tool_reaches_the_template_as_it_was_sent() -> None:
    tool = {"x": 1, "function": {"strict": None, "parameters": None, "name": "f", "more": [1]}, "type": "function"}
    body = parse(ChatRequest, HELLO | {"tools": [tool]})
    assert body.tools is not None
    assert str(body.tools[0]) == str(tool)  # the order of the keys, too
