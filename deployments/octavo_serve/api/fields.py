"""Types of request fields: what they accept, their bounds, and their description in the API's schema.

A wrong field costs one error whatever its length; by default pydantic makes one per element and union branch, 4.7 s for
2 MB of nulls. msgspec checks prompts in 8 ns a token, for which pydantic takes 50.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, PlainValidator
from pydantic_core import CoreSchema

from octavo.constraint import MAX_GRAMMAR
from octavo.request import (
    INT64,
    MAX_DEADLINE,
    MAX_LOGIT_BIAS,
    MAX_STOP,
    MAX_STOP_LENGTH,
    MAX_STOP_TOKEN_IDS,
    MAX_TOKEN_ID,
)
from octavo.text.grammars.sources import MAX_CHOICES
from octavo_serve.api.bounds import (
    MAX_ALLOWED_TOKENS,
    MAX_BAD_WORDS,
    MAX_METADATA,
    MAX_NAME,
    MAX_OPTIONS,
    MAX_PROMPT_TOKENS,
    MAX_TOOL_NAME,
    MAX_TOOLS,
)
from octavo_serve.api.custom_tools import wrong_format


@dataclass(frozen=True, slots=True)
class AtMost:
    """Bounds a list's or object's length, and stops its validation at the first error."""

    count: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = handler(source)
        return schema | {"max_length": self.count, "fail_fast": True}  # type: ignore[no-any-return]


def _integral(value: object) -> object:
    """Accept 2.0 as an integer, as JSON does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _few(value: object) -> object:
    """Bound the number of options in an object: each unknown one would cost an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_OPTIONS:
        raise ValueError(f"an object with {len(value)} keys is too large: at most {MAX_OPTIONS} are accepted")
    return value


def within(low: float, high: float, description: str | None = None) -> Any:
    """An optional number. The range is only for the API's description: `octavo.request` checks it."""
    return Field(default=None, description=description, json_schema_extra={"minimum": low, "maximum": high})


def only(*values: Any) -> Any:
    """An optional field of which only these values are supported; `refusals` refuses others."""
    return Field(default=None, json_schema_extra={"enum": [None, *values]})


Few = BeforeValidator(_few)
Integer = Annotated[int, Field(ge=INT64[0], le=INT64[1]), BeforeValidator(_integral)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), BeforeValidator(_integral)]
DeadlineMs = Annotated[
    float, Field(gt=0, le=1000 * MAX_DEADLINE, description="Milliseconds in which the first token must come.")
]
Name = Annotated[str, Field(max_length=MAX_NAME)]
Options = Annotated[dict[str, Any], AtMost(MAX_OPTIONS)]
Metadata = Annotated[dict[Name, Name], AtMost(MAX_METADATA)]
_Bias = Annotated[float, Field(json_schema_extra={"minimum": -100, "maximum": 100})]
_BiasedId = Annotated[str, Field(json_schema_extra={"pattern": "^[0-9]{1,10}$"})]
LogitBias = Annotated[dict[_BiasedId, _Bias], AtMost(MAX_LOGIT_BIAS)]
StopTokenIds = Annotated[list[TokenId], AtMost(MAX_STOP_TOKEN_IDS)]
StopString = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
Stop = Annotated[StopString | Annotated[list[StopString], AtMost(MAX_STOP)], Field(union_mode="left_to_right")]


# ── what an answer must be ──


def _grammar_text(text: str) -> str:
    if len(text) > MAX_GRAMMAR:
        raise ValueError(f"must have at most {MAX_GRAMMAR} characters")
    return text


GrammarText = Annotated[str, AfterValidator(_grammar_text)]  # a maxLength would make testers send megabytes
Schema = Annotated[dict[str, Any] | GrammarText, Field(union_mode="left_to_right")]
"""A JSON schema, or its text."""
Choices = Annotated[list[GrammarText], AtMost(MAX_CHOICES)]
AllowedTokenIds = Annotated[list[TokenId], AtMost(MAX_ALLOWED_TOKENS)]
BadWords = Annotated[list[Annotated[str, Field(min_length=1, max_length=MAX_NAME)]], AtMost(MAX_BAD_WORDS)]

_JSON_SCHEMA = {
    "type": ["object", "null"],
    "required": ["schema"],
    "properties": {
        "name": {"type": ["string", "null"]},
        "schema": {"type": ["object", "boolean", "string"]},
        "strict": {"type": ["boolean", "null"]},
    },
}
RESPONSE_FORMAT: dict[str, Any] = {
    "required": ["type"],
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema", "structural_tag"]},
        "json_schema": _JSON_SCHEMA,
    },
}
"""Schema of OpenAI's `response_format`."""
STRUCTURED: dict[str, Any] = {
    "properties": {
        "json": {"type": ["object", "boolean", "string", "null"]},
        "json_object": {"type": ["boolean", "null"]},
        "regex": {"type": ["string", "null"]},
        "choice": {"type": ["array", "null"], "items": {"type": "string"}},
        "grammar": {"type": ["string", "null"], "description": "Lark, or llama.cpp's GBNF."},
        "structural_tag": {"type": ["object", "string", "null"]},
    },
}
"""Schema of vLLM's `structured_outputs`: one of these."""


# ── prompts ──

_Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]
_Ids = Annotated[list[_Id], msgspec.Meta(max_length=MAX_PROMPT_TOKENS)]
_PROMPT_KINDS = "a string, a list of strings, a list of token ids or a list of such lists"


def _token_ids(value: object) -> list[int]:
    ids: list[int] = _converted(value, _Ids, "a list of token ids")
    return ids


def _prompt(value: object) -> object:
    """Validate a prompt; the first element determines the type of all."""
    if isinstance(value, str):
        return value
    first = value[0] if isinstance(value, list) and value else 0
    kind: Any = list[str] if isinstance(first, str) else list[_Ids] if isinstance(first, list) else _Ids
    return _converted(value, kind, _PROMPT_KINDS)


def _converted(value: object, kind: Any, wanted: str) -> Any:
    try:
        return _convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"must be {wanted}: {_plain(str(error))}") from None


def _convert(value: object, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error) or not isinstance(value, list):
            raise
    return msgspec.convert(_integers(value), kind)


def _integers(values: list[Any]) -> list[Any]:
    """Floats such as 2.0 as integers, in a list of ids or of lists of ids."""
    return [_integers(value) if isinstance(value, list) else _integral(value) for value in values[:MAX_PROMPT_TOKENS]]


def _plain(sentence: str) -> str:
    """msgspec's message without the path into the list."""
    return sentence.partition(" - at `")[0].replace("`", "")


_IdList = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], Field(max_length=MAX_PROMPT_TOKENS)]
TokenIds = Annotated[list[int], PlainValidator(_token_ids, json_schema_input_type=_IdList)]
Prompt = Annotated[
    str | list[str] | list[int] | list[list[int]],
    PlainValidator(_prompt, json_schema_input_type=str | list[str] | _IdList | list[_IdList]),
]


# ── messages ──

Part = Annotated[
    dict[str, Any],
    Field(
        json_schema_extra={
            "anyOf": [
                {
                    "required": ["type", kind],
                    "properties": {"type": {"enum": types}, kind: {"type": "string"}},
                }
                for kind, types in (("text", ["text", "input_text", "output_text"]), ("refusal", ["refusal"]))
            ]
        }
    ),
]
"""A part of a message's content; `octavo.text.chat` checks it."""

SAYS_SOMETHING: dict[str, Any] = {
    "anyOf": [
        {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
        {
            "required": ["tool_calls"],
            "properties": {"tool_calls": {"type": "array", "minItems": 1, "items": {"type": "object"}}},
        },
    ]
}
"""Schema rule: a message has a content, or calls tools."""


# ── tools ──


class Function(BaseModel):
    """A function that a model may call; further keys go to the chat template unchanged."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=f"^[a-zA-Z0-9_-]{{1,{MAX_TOOL_NAME}}}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema.")
    strict: bool | None = None


class Tool(BaseModel):
    """A tool definition; the chat template gets a function unchanged."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(pattern="^function$")
    function: Function


class CustomTool(BaseModel):
    """A tool whose input is a text."""

    type: str = Field(pattern="^custom$")
    custom: dict[str, Any] = Field(description="name, description, format: text, or a grammar as a regex or in Lark.")


_TOOL_NAME = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_TOOL_NAME}}}")


def _tools(value: object) -> object:
    """Check tool definitions by hand, which keeps their keys in the order in which they were sent."""
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ValueError(f"tools must be a list of at most {MAX_TOOLS} tool definitions")
    for position, tool in enumerate(value):
        if wrong := _wrong_tool(tool):
            raise ValueError(f"tools[{position}]{wrong}")
    check_names(tool[tool["type"]]["name"] for tool in value)
    return value


def check_names(names: Iterable[str]) -> None:
    """Refuse two tools of one name: a call of either could not be told from a call of the other.

    Raises:
        ValueError.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"tools holds two tools that are called {name!r}: give each its own name")
        seen.add(name)


def _wrong_tool(tool: object) -> str | None:
    """What is wrong with a tool definition; None if nothing is."""
    if not isinstance(tool, dict):
        return ' must be an object such as {"type": "function", "function": {"name": "..."}}'
    form = tool.get("type")
    if form not in ("function", "custom"):
        return '.type must be "function" or "custom": there is no other kind of tool here'
    function = tool.get(form)
    if not isinstance(function, dict):
        return f".{form} must be an object with a name"
    name = function.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        return f".{form}.name must be 1 to {MAX_TOOL_NAME} letters, digits, underscores or dashes"
    for key, kind, article in _FUNCTION_KEYS:
        if not isinstance(function.get(key), (kind, type(None))):
            return f".{form}.{key} must be {article}"
    wrong = wrong_format(function.get("format")) if form == "custom" else None
    return wrong and f".custom{wrong}"


_FUNCTION_KEYS = (
    ("description", str, "a string"),
    ("parameters", dict, "an object, a JSON schema"),
    ("strict", bool, "true or false"),
)

_ToolList = Annotated[list[Tool | CustomTool], Field(max_length=MAX_TOOLS)]
Tools = Annotated[list[dict[str, Any]], PlainValidator(_tools, json_schema_input_type=_ToolList)]
