"""Bodies: every field that Anthropic's SDK types is accepted, or refused by name."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import pytest
from anthropic.types import beta as sdk
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_create

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.surfaces.messages import schemas
from octavo_serve.surfaces.messages.schemas import REFUSED, MessagesRequest, PromptBody

HI: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
RULES: dict[str, Any] = {
    "thinking": {"type": "between_tools"},
    "speed": "fast",
    "tools": [{"type": "web_search_20250305", "name": "web_search"}],
    "diagnostics": {"previous_message_id": "msg_1"},
    "context_management": {"edits": [{"type": "compact_20260112"}]},
    "service_tier": "priority",
}
"""Field -> a value that is refused."""


def _fields(kind: Any) -> set[str]:
    return {field.alias or name for name, field in kind.model_fields.items()}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MessagesRequest, message_create_params.MessageCreateParamsStreaming),
        (MessagesRequest, beta_create.MessageCreateParamsStreaming),
        (PromptBody, message_count_tokens_params.MessageCountTokensParams),
        (PromptBody, beta_count.MessageCountTokensParams),
        (schemas.Message, sdk.BetaUserMessageParam),
        (schemas.Message, sdk.BetaAssistantMessageParam),
        (schemas.Message, sdk.beta_system_message_param.BetaSystemMessageParam),
        (schemas.Tool, sdk.BetaToolParam),
        (schemas.ToolChoice, sdk.BetaToolChoiceToolParam),
        (schemas.Thinking, sdk.BetaThinkingConfigEnabledParam),
        (schemas.Thinking, sdk.BetaThinkingConfigAdaptiveParam),
        (schemas.OutputConfig, sdk.BetaOutputConfigParam),
        (schemas.OutputFormat, sdk.BetaJSONOutputFormatParam),
        (schemas.Metadata, sdk.BetaMetadataParam),
        (schemas.ContextManagement, sdk.BetaContextManagementConfigParam),
        (schemas.Edit, sdk.BetaClearThinking20251015EditParam),
        (schemas.Diagnostics, sdk.BetaDiagnosticsParam),
    ],
)
def test_every_field_is_known(ours: Any, theirs: Any) -> None:
    assert get_type_hints(theirs).keys() <= _fields(ours)


@pytest.mark.parametrize(
    "name", [name for name, field in MessagesRequest.model_fields.items() if field.description == REFUSED]
)
def test_what_is_not_there_is_refused_by_name(name: str) -> None:
    parse(MessagesRequest, HI | {name: None})
    parse(MessagesRequest, HI | {name: []})
    with pytest.raises(BadRequest, match=f"{name} is not supported: leave it out"):
        parse(MessagesRequest, HI | {name: [{"a": 1}]})


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_value_that_asks_for_more_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(MessagesRequest, HI | {name: RULES[name]})
    assert str(caught.value.param).startswith(name)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n": 2}, "unknown field 'n'"),
        ({"max_tokens": None}, "max_tokens must be a valid integer"),
        ({"messages": []}, "messages must not be empty"),
        ({"messages": [{"role": "bot", "content": "Hi"}]}, "messages.0.role must be 'user', 'assistant' or 'system'"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content must be str or list, got 7"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]},
            "messages.0.content.0.text must be a valid string, got 7",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "txt": "a"}]}]},
            "unknown field 'txt': did you mean 'text'? in messages.0.content.0",
        ),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name"),
        ({"tools": [{"name": "a"}]}, "'tools.0.input_schema' is required"),
    ],
)
def test_the_sentence_says_what_to_change(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(MessagesRequest, HI | wrong)
    assert sentence in str(caught.value)


def test_a_long_system_prompt_is_accepted() -> None:
    body = json.dumps(HI | {"system": [{"type": "text", "text": "word " * 50_000}]}).encode()
    assert len(parse(MessagesRequest, body).conversation.messages) == 2


def test_what_claude_code_sends() -> None:
    """The fields of version 2.1.328, with other texts."""
    ephemeral = {"type": "ephemeral"}
    header = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.328.b7f; cc_entrypoint=sdk-cli;"}
    user = [
        {"type": "text", "text": "<system-reminder>\nIt is late.\n</system-reminder>"},
        {"type": "text", "text": "Hi"},
    ]
    environment = {"type": "text", "text": "You are at home.", "cache_control": ephemeral}
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": user}, {"role": "system", "content": [environment]}],
        "system": [header, {"type": "text", "text": "You are an agent.", "cache_control": ephemeral}],
        "tools": [
            {"name": "Read", "description": "Reads.", "input_schema": {"type": "object"}},
            {"name": "Later", "description": "", "input_schema": {"type": "object"}, "defer_loading": True},
        ],
        "metadata": {"user_id": json.dumps({"device_id": "8" * 64, "account_uuid": "", "session_id": "7" * 36})},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }
    read = parse(MessagesRequest, json.dumps(body).encode()).conversation
    assert [message.role for message in read.messages] == ["system", "user"]
    assert read.messages[0].content == "You are an agent."
    assert [tool["function"]["name"] for tool in read.tools] == ["Read"]
