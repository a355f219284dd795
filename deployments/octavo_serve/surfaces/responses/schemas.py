"""Bodies, answers and events of /v1/responses, as OpenAI's SDK types them.

What an item of the input must be is in `items`, what a tool must be in `tools`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, PlainValidator
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.request import INT64, MAX_LOGPROBS
from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_MESSAGES, MAX_THINKING, MAX_TOOLS
from octavo_serve.api.fields import AtMost, DeadlineMs, Few, Integer, Metadata, Name, Options, Stop, only, within
from octavo_serve.surfaces.openai.schemas import Refused
from octavo_serve.surfaces.responses.items import checked_items
from octavo_serve.surfaces.responses.tools import checked_tools

INCLUDABLE = (
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
    "reasoning.encrypted_content", "message.output_text.logprobs",
)  # fmt: skip
"""What `include` may name. All but the last two add to items that no answer here has."""
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_Object = dict[str, Any]
_Items = Annotated[list[_Object], Field(max_length=MAX_MESSAGES)]
_Tools = Annotated[list[_Object], Field(max_length=MAX_TOOLS)]
Input = Annotated[str | list[_Object], PlainValidator(checked_items, json_schema_input_type=str | _Items)]
Tools = Annotated[list[_Object], PlainValidator(checked_tools, json_schema_input_type=_Tools)]


class TextOptions(Body):
    """What the text must be.

    Attributes:
        format: {"type": "text"}, "json_object", or "json_schema" with name and schema.
    """

    format: Options | None = None
    verbosity: Name | None = Field(default=None, description="low and high add a sentence to the instructions.")


class Reasoning(Body):
    """How the model reasons, and what is told of it."""

    effort: Name | None = Field(default=None, description="For chat templates that read it; none: no reasoning.")
    summary: Name | None = Field(
        default=None, description="With auto, concise or detailed the reasoning comes as its item's summary."
    )
    generate_summary: Name | None = Field(default=None, description="The old name of summary.")
    max_tokens: Integer | None = within(0, MAX_THINKING, "Most tokens of the reasoning.")
    context: Name | None = only("auto")
    mode: Name | None = only("standard")


class StreamOptions(Body):
    include_obfuscation: bool | None = only(False)


class TurnBody(Body):
    """What makes a prompt, in /v1/responses and /v1/responses/input_tokens."""

    model: Name | None = None
    input: Input | None = Field(default=None, description="A text, or a list of items.")
    instructions: str | None = None
    previous_response_id: Name | None = None
    tools: Tools | None = None
    tool_choice: Annotated[str | Options, Field(union_mode="left_to_right")] | None = None
    parallel_tool_calls: bool | None = Field(default=None, description="False: at most one call.")
    text: Annotated[TextOptions, Few] | None = None
    reasoning: Annotated[Reasoning, Few] | None = None
    truncation: Name | None = only("disabled")
    chat_template_kwargs: Options | None = Field(default=None, description="Further variables of the chat template.")
    conversation: Refused


class ResponsesRequest(TurnBody):
    """Body of /v1/responses."""

    input: Input = Field(description="A text, or a list of items.")
    stream: bool | None = None
    stream_options: Annotated[StreamOptions, Few] | None = None
    store: bool | None = Field(default=None, description="False: nothing is kept of it. The default is true.")
    background: bool | None = Field(default=None, description="True: answer at once, and go on without the client.")
    include: Annotated[list[Name], AtMost(16)] | None = None
    max_output_tokens: Integer | None = within(1, INT64[1])
    max_tool_calls: Integer | None = within(1, INT64[1], "Of built-in tools, which there are none of here.")
    temperature: float | None = within(0, 100, "0 is greedy.")
    top_p: float | None = within(0, 1)
    top_k: Integer | None = within(-1, INT64[1], "0 and -1 keep all tokens.")
    min_p: float | None = within(0, 1)
    presence_penalty: float | None = within(-2, 2)
    frequency_penalty: float | None = within(-2, 2)
    repetition_penalty: float | None = within(0, 100, "More than 0.")
    seed: Integer | None = None
    stop: Stop | None = None
    top_logprobs: Integer | None = within(0, MAX_LOGPROBS, "Needs message.output_text.logprobs in include.")
    cache_salt: Name | None = None
    priority: Integer | None = None
    deadline_ms: DeadlineMs | None = None
    prompt_cache_key: Name | None = Field(default=None, description="Keeps requests together where no header does.")
    user: Name | None = Field(default=None, description="The same, after prompt_cache_key.")

    # labels: given back, or accepted and ignored
    metadata: Metadata | None = None
    safety_identifier: Name | None = None
    client_metadata: Options | None = None

    # refused unless their value asks for the default behaviour
    service_tier: Name | None = only("auto", "default")
    prompt_cache_retention: Name | None = only("in_memory", "in-memory")
    prompt_cache_options: Refused
    context_management: Refused
    background_options: Refused
    access_programs: Refused
    image: Refused
    moderation: Refused
    prompt: Refused


# ── answers ──

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ContentPart(TypedDict):
    """A part of a message ("output_text") or of reasoning ("reasoning_text", "summary_text")."""

    type: Literal["output_text", "reasoning_text", "summary_text"]
    text: str
    annotations: NotRequired[list[Any]]
    logprobs: NotRequired[list[TokenLogprob]]


class OutputItem(TypedDict):
    """A message, reasoning, or a call."""

    id: str
    type: Literal["message", "reasoning", "function_call", "custom_tool_call"]
    status: ItemStatus
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[list[ContentPart]]
    summary: NotRequired[list[ContentPart]]
    encrypted_content: NotRequired[str]
    call_id: NotRequired[str]
    name: NotRequired[str]
    namespace: NotRequired[str]
    arguments: NotRequired[str]
    input: NotRequired[str]


class InputDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(TypedDict):
    code: str
    message: str
    param: str | None


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class Response(TypedDict):
    """Answer of /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]


EventType = Literal[
    "response.created", "response.queued", "response.in_progress", "response.completed", "response.incomplete",
    "response.failed", "response.output_item.added", "response.output_item.done", "response.content_part.added",
    "response.content_part.done", "response.output_text.delta", "response.output_text.done",
    "response.reasoning_text.delta", "response.reasoning_text.done", "response.reasoning_summary_part.added",
    "response.reasoning_summary_part.done", "response.reasoning_summary_text.delta",
    "response.reasoning_summary_text.done", "response.function_call_arguments.delta",
    "response.function_call_arguments.done", "response.custom_tool_call_input.delta",
    "response.custom_tool_call_input.done",
]  # fmt: skip


class ResponseEvent(TypedDict):
    """One event of a stream; its type says which fields it has."""

    type: EventType
    sequence_number: int
    response: NotRequired[Response]
    item: NotRequired[OutputItem]
    item_id: NotRequired[str]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    summary_index: NotRequired[int]
    part: NotRequired[ContentPart]
    delta: NotRequired[str]
    text: NotRequired[str]
    logprobs: NotRequired[list[TokenLogprob]]
    name: NotRequired[str]
    arguments: NotRequired[str]
    input: NotRequired[str]
