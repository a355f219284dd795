"""What a message of the Messages API is made of: blocks of text, of thinking, of calls of tools and of their results.

A block of another kind is refused with a sentence. `cache_control` is accepted everywhere and changes nothing: every
prompt is looked up in the cache, and kept there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_OPTIONS, MAX_PARTS
from octavo_serve.api.fields import AtMost, Few, Name, Options

_NO_IMAGES = "the models here read text only"
_NO_SERVER_TOOLS = "this server runs no tools: leave out what another server's tools did"
REFUSED = {
    "image": _NO_IMAGES,
    "document": f"{_NO_IMAGES}; send the document's text as a block of type 'text'",
    "search_result": "send what was found as a block of type 'text'",
    "browser_state": _NO_IMAGES,
    "container_upload": "there are no containers here",
    "compaction": "this server does not compact conversations: send the summary as a block of type 'text'",
    "fallback": "there are no fallbacks here: leave it out",
    **dict.fromkeys(
        (
            "server_tool_use",
            "web_search_tool_result",
            "web_fetch_tool_result",
            "advisor_tool_result",
            "code_execution_tool_result",
            "bash_code_execution_tool_result",
            "text_editor_code_execution_tool_result",
            "tool_search_tool_result",
            "mcp_tool_use",
            "mcp_tool_result",
            "mcp_tool_listing",
        ),
        _NO_SERVER_TOOLS,
    ),
}
"""Type of a block -> why it is refused."""


def _checked(*kinds: str) -> Callable[[object], object]:
    """Refuse a block of any other kind in one sentence."""

    def check(value: object) -> object:
        kind = value.get("type") if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(kind, str):
            raise ValueError('must be an object such as {"type": "text", "text": "..."}')
        if kind not in kinds:
            why = REFUSED.get(kind) or f"a block here may be of type {' or '.join(kinds)}"
            raise ValueError(f"a block of type {kind!r:.80} is not supported here: {why}")
        if len(value) > MAX_OPTIONS:
            raise ValueError(f"a block with {len(value)} keys is too large: at most {MAX_OPTIONS} are accepted")
        return value

    return check


CacheControl = Annotated[Options | None, Field(description="Accepted: every prompt is cached.")]


class TextBlock(Body):
    type: Literal["text"]
    text: str
    citations: Annotated[list[Options], AtMost(MAX_PARTS)] | None = Field(default=None, description="Not shown.")
    cache_control: CacheControl = None


class ThinkingBlock(Body):
    """What the model thought, as an answer gave it; the chat template gets it as reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Body):
    """Thinking that only its own server can read: left out of the prompt."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any]
    caller: Options | None = None
    toolset_name: Name | None = None
    cache_control: CacheControl = None


class ToolReferenceBlock(Body):
    """Names a tool with `defer_loading` that is shown to the model from now on."""

    type: Literal["tool_reference"]
    tool_name: Name
    cache_control: CacheControl = None


ResultBlock = Annotated[
    Annotated[TextBlock | ToolReferenceBlock, Field(discriminator="type")],
    BeforeValidator(_checked("text", "tool_reference")),
]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: Name
    content: (
        Annotated[str | Annotated[list[ResultBlock], AtMost(MAX_PARTS)], Field(union_mode="left_to_right")] | None
    ) = None
    is_error: bool | None = None
    toolset_name: Name | None = None
    cache_control: CacheControl = None


class ToolReference(Body):
    type: Literal["tool_reference"]
    name: Name


class ToolAdditionBlock(Body):
    """Shows a tool with `defer_loading` to the model from now on."""

    type: Literal["tool_addition"]
    tool: Annotated[ToolReference, Few]
    cache_control: CacheControl = None


class ToolRemovalBlock(Body):
    """Shows a tool no longer."""

    type: Literal["tool_removal"]
    tool: Annotated[ToolReference, Few]
    cache_control: CacheControl = None


Block = Annotated[
    Annotated[
        TextBlock
        | ThinkingBlock
        | RedactedThinkingBlock
        | ToolUseBlock
        | ToolResultBlock
        | ToolAdditionBlock
        | ToolRemovalBlock,
        Field(discriminator="type"),
    ],
    BeforeValidator(
        _checked("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "tool_addition", "tool_removal")
    ),
]
SystemBlock = Annotated[TextBlock, BeforeValidator(_checked("text"))]
