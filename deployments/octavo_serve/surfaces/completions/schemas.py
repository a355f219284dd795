"""Bodies, answers and events of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.request import MAX_LOGPROBS
from octavo_serve.api.fields import Integer, Prompt, only, within
from octavo_serve.surfaces.openai.schemas import PromptLogprobs, SamplingBody, Usage


class CompletionRequest(SamplingBody):
    """Body of /v1/completions."""

    prompt: Prompt | None = Field(description='null or "" begins a new text.')
    logprobs: Integer | None = within(0, MAX_LOGPROBS)
    echo: bool | None = None
    suffix: Annotated[Any, only("")]


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class Completion(TypedDict):
    """Answer of /v1/completions and of the handle's `complete`; its stream's events have the same form."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: NotRequired[Usage | None]
