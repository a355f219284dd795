"""What is accepted is done or asks for nothing; what is not done is refused with a sentence that names it."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.http.describe import openapi
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.openai.asking import check_supported
from octavo_serve.surfaces.openai.refusals import RULES
from octavo_serve.surfaces.openai.schemas import NOT_SUPPORTED
from octavo_serve.surfaces.served import OPERATIONS, SURFACES

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}

REFUSED: list[dict[str, Any]] = [
    {"store": True},
    {"service_tier": "flex"},
    {"prompt_cache_retention": "24h"},
    {"thinking": {"type": "enabled", "tokens": 1024}},
    {"thinking": {}, "reasoning": {"max_tokens": "5"}},
    {"verbosity": "low"},
    {"modalities": ["audio"]},
    {"functions": [{"name": "f"}]},
    {"function_call": {"name": "f"}},
    {"spaces_between_special_tokens": True, "skip_special_tokens": False},
    {"stream_options": {"include_obfuscation": True}, "stream": True},
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
    {"parallel_tool_calls": False, "tools": [TOOL]},
    {"include_reasoning": False},
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
    assert openapi(SURFACES, OPERATIONS)
