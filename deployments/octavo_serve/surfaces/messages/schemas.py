"""Bodies of /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from octavo.request import INT64, MAX_STOP
from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_MESSAGES, MAX_OPTIONS, MAX_PARTS, MAX_TOOLS
from octavo_serve.api.fields import AtMost, Few, Integer, Name, Options, StopString, check_names, within
from octavo_serve.surfaces.messages.blocks import Block, CacheControl, SystemBlock
from octavo_serve.surfaces.messages.conversation import Conversation, read

REFUSED = "Refused unless it is null or empty."


def refused() -> Any:
    """A field of the API that is not there."""
    return Field(default=None, description=REFUSED, json_schema_extra={"enum": [None, [], {}, ""]})


class Thinking(Body):
    """Whether the model thinks before it answers; a model that cannot think spends none of its budget."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Integer | None = Field(default=None, ge=1, description="Most tokens of thinking.")
    display: Literal["summarized", "omitted"] | None = Field(
        default=None, description="`omitted`: the answer holds the thinking in its signature alone."
    )
    block_binding: Options | None = Field(default=None, description="A block of thinking fits every conversation.")


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="For chat templates that read `reasoning_effort`; others answer as always."
    )
    format: Annotated[OutputFormat, Few] | None = None
    task_budget: Any = refused()


def _own_tool(value: object) -> object:
    """Refuse what is no tool of the client's own."""
    if not isinstance(value, Mapping):
        raise ValueError("must be an object with a name and an input_schema")
    kind = value.get("type")
    if kind not in (None, "custom"):
        raise ValueError(
            f"the tool type {kind!r:.80} is not known here: define the tool with a name and an input_schema"
        )
    if len(value) > MAX_OPTIONS:
        raise ValueError(f"a tool with {len(value)} keys is too large: at most {MAX_OPTIONS} are accepted")
    return value


class Tool(Body):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="A JSON schema.")
    strict: bool | None = None
    input_examples: Annotated[list[Options], AtMost(MAX_PARTS)] | None = Field(
        default=None, description="Written below the description."
    )
    defer_loading: bool | None = Field(default=None, description="Not shown to the model before it is referred to.")
    eager_input_streaming: bool | None = Field(default=None, description="Always so.")
    allowed_callers: Annotated[list[Literal["direct"]], AtMost(1)] | None = None
    cache_control: CacheControl = None


OwnTool = Annotated[Tool, BeforeValidator(_own_tool)]


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(Body):
    user_id: Name | None = Field(default=None, description="Keeps a user's requests together where no header does.")


class Edit(Body):
    """All thinking is kept: the chat template decides what it shows."""

    type: Literal["clear_thinking_20251015"]
    keep: Annotated[Literal["all"] | None, BeforeValidator(lambda v: "all" if v == {"type": "all"} else v)] = None


class ContextManagement(Body):
    edits: Annotated[list[Edit], AtMost(MAX_OPTIONS)] | None = None


class Diagnostics(Body):
    previous_message_id: None = None


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: Annotated[str | Annotated[list[Block], AtMost(MAX_PARTS)], Field(union_mode="left_to_right")]
    clear_at: Literal["never"] | None = None
    output_config: Any = refused()


System = Annotated[str | Annotated[list[SystemBlock], AtMost(MAX_PARTS)], Field(union_mode="left_to_right")]


class PromptBody(Body):
    """What a prompt is made of: the body of /v1/messages/count_tokens.

    It is read while it is validated: in a thread if it is large.
    """

    model: Name
    messages: Annotated[list[Annotated[Message, Few]], AtMost(MAX_MESSAGES), Field(min_length=1)]
    system: System | None = None
    tools: Annotated[list[OwnTool], AtMost(MAX_TOOLS)] | None = None
    tool_choice: Annotated[ToolChoice, Few] | None = None
    thinking: Annotated[Thinking, Few] | None = None
    output_config: Annotated[OutputConfig, Few] | None = None
    output_format: Annotated[OutputFormat, Few] | None = Field(default=None, description="`output_config.format`.")
    context_management: Annotated[ContextManagement, Few] | None = None
    cache_control: CacheControl = None
    speed: Literal["standard"] | None = None

    # labels: accepted and ignored, because nothing is stored
    betas: Annotated[list[Name], AtMost(MAX_OPTIONS)] | None = None
    user_profile_id: Name | None = None
    workspace_id: Name | None = None

    billing_policy: Any = refused()
    compaction: Any = refused()
    mcp_servers: Any = refused()

    _conversation: Conversation = PrivateAttr()

    @property
    def conversation(self) -> Conversation:
        """The messages and tools as chat templates read them."""
        return self._conversation

    @model_validator(mode="after")
    def _read(self) -> PromptBody:
        for name, field in type(self).model_fields.items():
            if field.description == REFUSED and getattr(self, name):
                raise ValueError(f"{name} is not supported: leave it out")
        check_names(tool.name for tool in self.tools or ())
        self._conversation = read(self.system, self.messages, self.tools or ())
        return self


class MessagesRequest(PromptBody):
    """Body of /v1/messages."""

    max_tokens: Integer = Field(ge=0, le=INT64[1], description="Most tokens; 0 computes the prompt alone.")
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], AtMost(MAX_STOP)] | None = None
    temperature: float | None = within(0, 100, "0 is greedy.")
    top_p: float | None = within(0, 1)
    top_k: Integer | None = within(-1, INT64[1], "0 and -1 keep all tokens.")
    metadata: Annotated[Metadata, Few] | None = None
    service_tier: Literal["auto", "standard_only"] | None = Field(default=None, description="There is one tier.")
    diagnostics: Annotated[Diagnostics, Few] | None = None

    container: Any = refused()
    fallback_credit_token: Any = refused()
    fallbacks: Any = refused()
    inference_geo: Any = refused()
    thread: Any = refused()
