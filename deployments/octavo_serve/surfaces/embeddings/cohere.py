"""Cohere's second /embed: the same vectors in its words."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.errors import BadRequest
from octavo.pooled import check_dimensions, check_task, vector
from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_PROMPT_TOKENS, MAX_TEXTS
from octavo_serve.api.fields import AtMost, Integer, Name
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.pooling import Asking, accepted, pooled
from octavo_serve.api.service import Service
from octavo_serve.api.texts import Cut
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.openai.schemas import Refused
from octavo_serve.surfaces.vectors.prompts import InputType, prompted
from octavo_serve.surfaces.vectors.writing import written


class EmbedRequest(Body):
    """Body of /v2/embed."""

    flat: ClassVar[tuple[str, ...]] = ("texts",)

    model: Name | None = None
    texts: Annotated[list[str], AtMost(MAX_TEXTS)]
    input_type: InputType | None = None
    embedding_types: Annotated[list[Literal["float", "base64"]], Field(min_length=1), AtMost(1)] | None = None
    output_dimension: Annotated[Integer, Field(ge=1)] | None = None
    max_tokens: Annotated[Integer, Field(ge=1, le=MAX_PROMPT_TOKENS)] | None = Field(
        default=None, description="Tokens of each text that are read."
    )
    truncate: Literal["NONE", "START", "END"] | None = Field(
        default=None, description='What is left out of a text that is too long; "END", if this is.'
    )
    priority: Integer | None = None
    images: Refused
    inputs: Refused


class Vectors(TypedDict, total=False):
    """One of these."""

    float: list[list[float]]
    base64: list[str]


class Meta(TypedDict):
    api_version: dict[str, str]
    billed_units: dict[str, int]


class Embedded(TypedDict):
    """Answer of /v2/embed."""

    id: str
    response_type: Literal["embeddings_by_type"]
    texts: list[str]
    meta: Meta
    embeddings: Vectors


async def embed(service: Service, call: Call) -> Listing:
    """The vectors of a body's texts.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: EmbedRequest = call.body
    asking = call.admit(_asking(body))
    async with accepted(service, asking, body.texts) as ready:
        check_task("embed", ready.info.tasks, ready.model.name)
        check_dimensions(body.output_dimension, ready.info.pooling)
        texts = prompted(body.texts, ready.info.pooling, "texts", None, body.input_type)
        encoded = await ready.encoded(texts)
    found = await pooled(ready, encoded, "embed")
    info, (kind,) = found.info.pooling, body.embedding_types or ["float"]
    meta: Meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": found.prompt_tokens}}
    before = {"id": found.id, "response_type": "embeddings_by_type", "texts": body.texts, "meta": meta}

    def entry(number: int) -> list[float] | str:
        return written(vector(found.values[number], info, body.output_dimension), kind)

    width = body.output_dimension or info.dimensions
    return Listing(count=len(encoded), entry=entry, weight=width, at=("embeddings", kind), before=before)


def _asking(body: EmbedRequest) -> Asking:
    if body.images or body.inputs:
        raise BadRequest("only texts are embedded here: send them as texts", "images" if body.images else "inputs")
    most = None if body.truncate == "NONE" else body.max_tokens or -1
    return Asking(
        kind="embed",
        operation="embeddings",
        model=body.model,
        param="texts",
        cut=Cut(most=most, keeps_end=body.truncate == "START"),
        hint='shorten it, or send truncate: "END"',
        priority=body.priority or 0,
    )


COHERE = Operation(
    method="POST",
    path="/v2/embed",
    summary="Cohere: vectors of texts",
    answers=Embedded,
    run=embed,
    errors=ERRORS,
    body=EmbedRequest,
    many=True,
)
