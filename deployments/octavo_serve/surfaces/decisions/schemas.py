"""Bodies and answers of OpenAI's /v1/decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictStr
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_MESSAGES, MAX_PARTS
from octavo_serve.api.fields import AtMost, Few, Name
from octavo_serve.surfaces.decisions.reading import one_of

MAX_QUESTIONS = 400
"""Questions of one request, as OpenAI's."""
MAX_OPTIONS = 255
"""Choices or levels of one question, as OpenAI's."""

_NO_IMAGES = "parts of type input_image are not supported: the models here read text"


class Breakpoint(Body):
    """Where a reusable prefix ends. Every prefix is reusable here, so it changes nothing."""

    mode: Literal["explicit"]


class TextPart(Body):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Annotated[Breakpoint, Few] | None = None


class QuestionText(Body):
    type: Literal["input_text"]
    text: str


class JsonPart(Body):
    """Rendered as text; its bounds are those of `text.json_text`."""

    type: Literal["input_json"]
    data: Annotated[dict[str, Any] | list[dict[str, Any]], Field(union_mode="left_to_right")]


class OutputText(Body):
    type: Literal["output_text"]
    text: str


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: str


_Text = Annotated[TextPart, one_of({"input_text": TextPart, "input_image": _NO_IMAGES})]
_UserPart = Annotated[
    TextPart | JsonPart, one_of({"input_text": TextPart, "input_json": JsonPart, "input_image": _NO_IMAGES})
]
_AssistantPart = Annotated[OutputText | RefusalPart, one_of({"output_text": OutputText, "refusal": RefusalPart})]
_QuestionPart = Annotated[
    QuestionText | JsonPart, one_of({"input_text": QuestionText, "input_json": JsonPart, "input_image": _NO_IMAGES})
]
_Either = Field(union_mode="left_to_right")
Texts = Annotated[str | Annotated[list[_Text], AtMost(MAX_PARTS)], _Either]
UserContent = Annotated[str | Annotated[list[_UserPart], AtMost(MAX_PARTS)], _Either]
AssistantContent = Annotated[str | Annotated[list[_AssistantPart], AtMost(MAX_PARTS)], _Either]
Instructions = Annotated[str | Annotated[list[_QuestionPart], AtMost(MAX_PARTS)], _Either]

Status = Literal["in_progress", "completed", "incomplete"]
_Type = Literal["message"]


class UserMessage(Body):
    type: _Type | None = None
    role: Literal["user"]
    content: UserContent


class SystemMessage(Body):
    """A system message, or a developer's."""

    type: _Type | None = None
    role: Literal["system", "developer"]
    content: Texts


class AssistantMessage(Body):
    type: _Type | None = None
    role: Literal["assistant"]
    content: AssistantContent
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCall(Body):
    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str
    id: Name | None = None
    namespace: Name | None = None
    status: Status | None = None


class CustomCall(Body):
    type: Literal["custom_tool_call"]
    call_id: Name
    name: Name
    input: str
    id: Name | None = None
    namespace: Name | None = None
    status: Status | None = None


class CallOutput(Body):
    """What a function or a custom tool returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Name
    output: Texts
    id: Name | None = None
    status: Status | None = None


def _item_kind(item: Mapping[str, Any]) -> object:
    kind = item.get("type") or "message"
    return item.get("role") if kind == "message" else kind


Item = Annotated[
    UserMessage | SystemMessage | AssistantMessage | FunctionCall | CallOutput | CustomCall,
    one_of(
        {
            "user": UserMessage,
            "system": SystemMessage,
            "developer": SystemMessage,
            "assistant": AssistantMessage,
            "function_call": FunctionCall,
            "function_call_output": CallOutput,
            "custom_tool_call": CustomCall,
            "custom_tool_call_output": CallOutput,
        },
        _item_kind,
    ),
]


# ── questions ──

_AT_LEAST_TWO = Field(json_schema_extra={"minItems": 2})  # `questions` checks it, and says more


class Predicate(Body):
    """How likely is it that a statement about the input is true?"""

    type: Literal["predicate"]
    name: Name | None = None
    instructions: Instructions


class ChoiceOption(Body):
    value: Annotated[StrictStr | StrictBool, Field(union_mode="left_to_right")]
    description: str | None = None


class Choice(Body):
    """Which of these options fits the input?"""

    type: Literal["choice"]
    name: Name | None = None
    instructions: Instructions
    choices: Annotated[list[ChoiceOption], AtMost(MAX_OPTIONS), _AT_LEAST_TWO]


class Level(Body):
    label: str
    description: str | None = None


class Score(Body):
    """Where is the input on this scale, whose levels go from the lowest to the highest?"""

    type: Literal["score"]
    name: Name | None = None
    instructions: Instructions
    levels: Annotated[list[Level], AtMost(MAX_OPTIONS), _AT_LEAST_TWO]


AnyQuestion = Annotated[Predicate | Choice | Score, one_of({"predicate": Predicate, "choice": Choice, "score": Score})]


class PromptCacheOptions(Body):
    mode: Literal["implicit", "explicit"] | None = Field(
        default=None, description="With explicit and without a breakpoint, nothing that other requests left is used."
    )
    ttl: Literal["30m"] | None = Field(default=None, description="A wish: blocks stay for as long as there is room.")


class DecisionRequest(Body):
    """Body of /v1/decisions."""

    model: Name | None = None
    input: Annotated[
        str | Annotated[list[Item], AtMost(MAX_MESSAGES), Field(min_length=1)], Field(union_mode="left_to_right")
    ]
    questions: Annotated[list[AnyQuestion], AtMost(MAX_QUESTIONS), Field(min_length=1)]
    prompt_cache_key: Name | None = Field(default=None, description="Keeps requests with the same key together.")
    prompt_cache_options: Annotated[PromptCacheOptions, Few] | None = None
    safety_identifier: Name | None = None  # a label: accepted and ignored, because nothing is stored


# ── answers ──


class PredicateAnswer(TypedDict):
    type: Literal["predicate"]
    name: str | None
    probability: float


class ChoiceProbability(TypedDict):
    value: str | bool
    probability: float


class ChoiceAnswer(TypedDict):
    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]


class ScoreProbability(TypedDict):
    value: int
    label: str
    probability: float


class ScoreAnswer(TypedDict):
    type: Literal["score"]
    name: str | None
    score: float
    confidence: float
    probabilities: list[ScoreProbability]


class RefusalAnswer(TypedDict):
    type: Literal["refusal"]
    name: str | None


Answer = PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer


class InputTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int


class DecisionUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Decision(TypedDict):
    """Answer of /v1/decisions: the questions' answers in their order."""

    model: str
    answers: list[Answer]
    usage: DecisionUsage
