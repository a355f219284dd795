"""Bodies and answers of vLLM's /score, /classify and /pooling."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.bounds import MAX_TEXTS
from octavo_serve.api.fields import AtMost, Integer, Name, Prompt
from octavo_serve.surfaces.vectors.fields import Usage, VectorBody

Texts = Annotated[str | Annotated[list[str], AtMost(MAX_TEXTS)], Field(union_mode="left_to_right")]


class ScoreRequest(VectorBody):
    """Body of /score: two texts, one and many, or as many and as many, under one of three pairs of names."""

    flat: ClassVar[tuple[str, ...]] = ("text_1", "text_2", "queries", "documents", "data_1", "data_2")

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = Field(default=None, description="`text_1`.")
    documents: Texts | None = Field(default=None, description="`text_2`.")
    data_1: Texts | None = Field(default=None, description="`text_1`.")
    data_2: Texts | None = Field(default=None, description="`text_2`.")
    instruction: str | None = Field(default=None, description="What for, in words: for models that answer yes or no.")
    use_activation: bool | None = Field(default=None, description="False: scores are the model's raw ones.")
    activation: bool | None = Field(default=None, description="`use_activation`.")


class Score(TypedDict):
    index: int
    object: Literal["score"]
    score: float


class Scores(TypedDict):
    """Answer of /score."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


class ClassifyRequest(VectorBody):
    """Body of /classify."""

    input: Prompt
    use_activation: bool | None = Field(default=None, description="False: the logits, not their probabilities.")
    activation: bool | None = Field(default=None, description="`use_activation`.")


class Classification(TypedDict):
    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class Classifications(TypedDict):
    """Answer of /classify."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classification]
    usage: Usage


class PoolingRequest(ClassifyRequest):
    """Body of /pooling."""

    task: Name | None = Field(default=None, description='"embed" or "classify"; null: what the model does.')
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Integer, Field(ge=1)] | None = None
    normalize: bool | None = Field(default=None, description="`use_activation`, of vectors.")


class PooledText(TypedDict):
    index: int
    object: Literal["pooling"]
    data: list[float] | str


class PooledTexts(TypedDict):
    """Answer of /pooling."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PooledText]
    usage: Usage
