"""Bodies and answers of TypeSafe's /v1/systemone."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.body import Body
from octavo_serve.api.fields import AtMost, Name
from octavo_serve.surfaces.decisions.reading import one_of
from octavo_serve.surfaces.decisions.schemas import MAX_OPTIONS, MAX_QUESTIONS

_Either = Field(union_mode="left_to_right")
Content = Annotated[str | dict[str, Any] | list[Any], _Either]
"""A text, or JSON that is rendered as text."""

_NO_BOXES = "questions of type box are not supported: the models here read text"


class Noul(Body):
    """A question to be answered with yes or no."""

    type: Literal["noul"]
    instructions: Content
    criteria: Annotated[dict[Literal["true", "false"], Content | None], AtMost(2)] | None = Field(
        default=None, description="What each of the two answers means."
    )


class LabelledChoice(Body):
    """Which of these labels fits the state?"""

    type: Literal["choice"]
    instructions: Content
    criteria: Annotated[dict[Name, Content | None], AtMost(MAX_OPTIONS), Field(min_length=1)] = Field(
        description="Label -> what it means."
    )


class Rubric(Body):
    """Where is the state on this scale, whose levels go from the lowest to the highest?"""

    type: Literal["score"]
    instructions: Content
    criteria: Annotated[list[Content], AtMost(MAX_OPTIONS), Field(min_length=1)]


AnyQuestion = Annotated[
    Noul | LabelledChoice | Rubric,
    one_of({"noul": Noul, "choice": LabelledChoice, "score": Rubric, "box": _NO_BOXES}),
]
Questions = Annotated[dict[Name, AnyQuestion], AtMost(MAX_QUESTIONS), Field(min_length=1)]


class SystemOneRequest(Body):
    """Body of /v1/systemone."""

    model: Name | None = None
    state: Content
    questions: Questions


class NoulAnswer(TypedDict):
    type: Literal["noul"]
    noul: float


class LabelAnswer(TypedDict):
    type: Literal["choice"]
    choice: str
    confidence: float
    probabilities: dict[str, float]


class RubricAnswer(TypedDict):
    type: Literal["score"]
    score: float
    confidence: float
    legend: dict[str, str]
    probabilities: dict[str, float]


class SystemOneUsage(TypedDict):
    input_tokens: int
    output_tokens: int
    cached_tokens: NotRequired[int]


class SystemOneAnswer(TypedDict):
    """Answer of /v1/systemone, by the questions' names. A question that the model did not answer is left out."""

    model: str
    answers: dict[str, NoulAnswer | LabelAnswer | RubricAnswer]
    usage: SystemOneUsage
