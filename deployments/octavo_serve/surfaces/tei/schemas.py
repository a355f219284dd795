"""Bodies and answers of Hugging Face's Text Embeddings Inference (TEI)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field, PlainValidator
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_TEXTS
from octavo_serve.api.fields import AtMost, Integer, Name, Prompt
from octavo_serve.api.pooling import Asking
from octavo_serve.api.telemetry import Operation
from octavo_serve.api.texts import Cut, Pair

Direction = Literal["left", "right", "Left", "Right"]


class Cutting(Body):
    """How long texts are cut."""

    truncate: bool | None = Field(default=None, description="Without it a text that is too long is refused.")
    truncation_direction: Direction | None = Field(default=None, description='"left" keeps the end, not the beginning.')

    @property
    def cut(self) -> Cut:
        """How texts are made to fit."""
        left = (self.truncation_direction or "").lower() == "left"
        return Cut(most=-1 if self.truncate else None, keeps_end=left)


class TEIBody(Cutting):
    """What all bodies have."""

    flat: ClassVar[tuple[str, ...]] = ("inputs",)

    model: Name | None = Field(default=None, description="Not TEI's: where several models are served.")

    def asking(self, kind: str, operation: Operation, cut: Cut) -> Asking:
        """Who asks what."""
        hint = "shorten it, or send truncate: true"
        return Asking(kind=kind, operation=operation, model=self.model, param="inputs", cut=cut, hint=hint)


class EmbedRequest(TEIBody):
    """Body of /embed and /embed_all."""

    inputs: Prompt
    normalize: bool | None = Field(default=None, description="True, if it is left out.")
    prompt_name: Name | None = None
    dimensions: Annotated[Integer, Field(ge=1)] | None = None


class SimilarityInputs(Body):
    source_sentence: str
    sentences: Annotated[list[str], AtMost(MAX_TEXTS)]


class SimilarityParameters(Cutting):
    prompt_name: Name | None = None


class SimilarityRequest(TEIBody):
    """Body of /similarity."""

    flat: ClassVar[tuple[str, ...]] = ("inputs",)

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class Sequences(NamedTuple):
    """What /predict is asked about.

    Attributes:
        alone: it was no list; neither is the answer.
    """

    texts: list[str | Pair]
    alone: bool


def _sequences(value: object) -> Sequences:
    if isinstance(value, str):
        return Sequences([value], True)
    if not isinstance(value, list):
        raise ValueError(f"must be {_KINDS}")
    if len(value) > MAX_TEXTS:
        raise ValueError(f"must be at most {MAX_TEXTS} texts, got {len(value)}: send several requests")
    if value and isinstance(value[0], str):
        return Sequences([_sequence(value)], True)
    return Sequences([_sequence(each) for each in value], False)


def _sequence(value: object) -> str | Pair:
    """A list of one text, or of two that are read together."""
    if not isinstance(value, list) or len(value) not in (1, 2) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"must be {_KINDS}")
    return value[0] if len(value) == 1 else Pair(*value)


_KINDS = "a text, a list of two texts that are read together, or a list of lists of one text or two"
_One = Annotated[list[str], Field(min_length=1, max_length=2)]
_Described = str | _One | Annotated[list[_One], Field(max_length=MAX_TEXTS)]


class PredictRequest(TEIBody):
    """Body of /predict."""

    inputs: Annotated[Sequences, PlainValidator(_sequences, json_schema_input_type=_Described)]
    raw_scores: bool | None = None


class AnyRequest(Body):
    """Body of TEI's path of a model, whatever the model does."""

    flat: ClassVar[tuple[str, ...]] = ("inputs", "texts")
    model_config = ConfigDict(extra="allow")

    inputs: Any = None


class Prediction(TypedDict):
    score: float
    label: str


class ErrorBody(TypedDict):
    error: str
    error_type: str
