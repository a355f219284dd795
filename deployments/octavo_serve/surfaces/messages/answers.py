"""Answers, events and errors of the Messages API."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "model_context_window_exceeded"]


class Text(TypedDict):
    type: Literal["text"]
    text: str


class Thought(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUse(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Any


Content = Text | Thought | ToolUse


class OutputTokensDetails(TypedDict):
    thinking_tokens: int


class Usage(TypedDict):
    """`input_tokens` are those that were computed: beside them come those that were read from the cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    service_tier: Literal["standard"]


class Message(TypedDict):
    """Answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Content]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: Usage


class MessageStart(TypedDict):
    type: Literal["message_start"]
    message: Message


class Ping(TypedDict):
    type: Literal["ping"]


class BlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: int
    content_block: Content


class TextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


BlockDeltaKind = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: int
    delta: BlockDeltaKind


class BlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: int


class Stop(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(TypedDict):
    type: Literal["message_delta"]
    delta: Stop
    usage: Usage


class MessageStop(TypedDict):
    type: Literal["message_stop"]


Event = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class TokenCount(TypedDict):
    """Answer of /v1/messages/count_tokens."""

    input_tokens: int


class ErrorDetail(TypedDict):
    type: str
    message: str


class ErrorBody(TypedDict):
    """An error, also as the last event of a stream."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: None
