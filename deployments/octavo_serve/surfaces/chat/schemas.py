"""Bodies, answers and events of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.request import INT64, MAX_LOGPROBS
from octavo_serve.api.bounds import MAX_THINKING
from octavo_serve.api.fields import AtMost, Integer, Name, Options, Tools, only, within
from octavo_serve.surfaces.openai.schemas import Messages, PromptLogprobs, Refused, SamplingBody, Usage


class ChatRequest(SamplingBody):
    """Body of /v1/chat/completions."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: Integer | None = within(0, MAX_LOGPROBS)
    max_tokens: Integer | None = within(1, INT64[1])
    max_completion_tokens: Integer | None = within(1, INT64[1], "Wins over max_tokens.")
    tools: Tools | None = None
    tool_choice: Annotated[Name | Options, Field(union_mode="left_to_right")] | None = Field(
        default=None,
        description='"auto", "none", "required", {"type": "function", "function": {"name": ...}}, or "allowed_tools".',
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Options | None = Field(default=None, description="Further variables of the chat template.")
    reasoning_effort: Name | None = Field(default=None, description="For chat templates that read it.")
    thinking: Options | None = Field(
        default=None, description='{"type": "enabled", "budget_tokens": ...}, or "disabled".'
    )
    reasoning: Options | None = Field(
        default=None, description='{"effort": ..., "enabled": ..., "max_tokens": ...}: the two above.'
    )
    thinking_token_budget: Integer | None = within(0, MAX_THINKING, "Tokens that the model may think.")

    include_reasoning: bool | None = Field(default=None, description="False leaves reasoning out of the answer.")
    parallel_tool_calls: bool | None = Field(default=None, description="False: one call at most.")
    prediction: Options | None = Field(
        default=None,
        description='{"type": "content", "content": ...}: what much of the answer will be, as a text or parts of type '
        '"text". It makes the answer faster, and changes nothing of it.',
    )
    return_token_origins: bool | None = Field(
        default=None,
        description="Octavo's own: how many tokens were sampled, how many forced; a chunk has one kind.",
    )

    # refused unless their value asks for the default behaviour
    verbosity: Name | None = only("medium")
    modalities: Annotated[list[Name], AtMost(8)] | None = only(list[str](), ["text"])
    echo: Refused
    chat_template: Refused
    functions: Annotated[Any, only(list[Any]())]
    function_call: Annotated[Any, only("none", "auto")]
    audio: Refused
    web_search_options: Refused
    documents: Refused
    moderation: Refused
    mm_processor_kwargs: Refused


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class CalledFunction(TypedDict):
    name: str
    arguments: str


class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CustomInput(TypedDict):
    name: str
    input: str


class CustomToolCall(TypedDict):
    id: str
    type: Literal["custom"]
    custom: CustomInput


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall | CustomToolCall]]


class TokenOrigins(TypedDict):
    """Tokens by where they came from; forced ones were known without being sampled: a grammar left no choice."""

    sampled: int
    forced: int


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]
    token_origins: NotRequired[TokenOrigins]


class ChatCompletion(TypedDict):
    """Answer of /v1/chat/completions and of the handle's `chat`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    service_tier: None
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: NotRequired[list[int]]


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class CustomToolCallDelta(TypedDict):
    """A call of a custom tool; it comes as a whole."""

    index: int
    id: str
    type: Literal["custom"]
    custom: CustomInput


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta | CustomToolCallDelta]]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]
    token_ids: NotRequired[list[int]]
    token_origins: NotRequired[TokenOrigins]


class ChatChunk(TypedDict):
    """One event of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: NotRequired[Usage | None]
    prompt_logprobs: NotRequired[PromptLogprobs | None]
    prompt_token_ids: NotRequired[list[int]]
