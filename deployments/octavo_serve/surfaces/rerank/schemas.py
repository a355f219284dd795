"""Bodies and answers of /rerank: Cohere's (1 and 2), Jina's, vLLM's, and Text Embeddings Inference's (TEI)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field, PlainValidator
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.bounds import MAX_PROMPT_TOKENS, MAX_TEXTS
from octavo_serve.api.fields import AtMost, Integer
from octavo_serve.surfaces.vectors.fields import Side, Usage, VectorBody


def _documents(value: object) -> list[str]:
    """Texts, some of which may be the `text` of an object."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list of texts, or of objects with a text; got a {type(value).__name__}")
    if len(value) > MAX_TEXTS:
        raise ValueError(f"must be at most {MAX_TEXTS} documents, got {len(value)}: send several requests")
    return [_document(each, number) for number, each in enumerate(value)]


def _document(value: object, number: int) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError(f"must be texts, or objects with a text: [{number}] is neither")
    return text


_TextOf: Any = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
_Described = Annotated[
    list[Annotated[Any, Field(json_schema_extra={"anyOf": [{"type": "string"}, _TextOf]})]], Field(max_length=MAX_TEXTS)
]
Documents = Annotated[list[str], PlainValidator(_documents, json_schema_input_type=_Described)]


class RerankRequest(VectorBody):
    """Body of /v1/rerank and /v2/rerank."""

    flat: ClassVar[tuple[str, ...]] = ("documents", "texts")

    query: str
    documents: Documents | None = None
    top_n: Annotated[Integer, Field(ge=0)] | None = Field(default=None, description="Results to return; 0: all.")
    return_documents: bool | None = Field(
        default=None, description="Whether results repeat their documents; null: in /v2/rerank not, else they do."
    )
    max_tokens_per_doc: Annotated[Integer, Field(ge=1, le=MAX_PROMPT_TOKENS)] | None = Field(
        default=None, description="Tokens of each document that are read; null: as many as the model reads."
    )
    max_chunks_per_doc: Annotated[Integer, Field(ge=1)] | None = Field(
        default=None, description="Taken and not used: a document's beginning is read."
    )
    rank_fields: Annotated[list[Literal["text"]], AtMost(1)] | None = None
    instruction: str | None = Field(default=None, description="What for, in words: for models that answer yes or no.")
    use_activation: bool | None = Field(default=None, description="False: scores are the model's raw ones.")


class AnyRerankRequest(RerankRequest):
    """Body of /rerank, which has `documents`, or `texts` as TEI's; the answer is in the same form."""

    texts: Annotated[list[str], AtMost(MAX_TEXTS)] | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = Field(default=None, description="TEI's: whether texts that are too long are cut.")
    truncation_direction: Side | Literal["Left", "Right"] | None = None


class DocumentText(TypedDict):
    text: str


class RerankResult(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[DocumentText]


class ApiVersion(TypedDict):
    version: Literal["1", "2"]


class BilledUnits(TypedDict):
    search_units: int


class Tokens(TypedDict):
    input_tokens: int
    output_tokens: int


class Meta(TypedDict):
    """What Cohere's answers have for usage."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: Tokens


class Reranked(TypedDict):
    """Answer of /rerank: the best documents first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RerankResult]
    meta: Meta
    usage: Usage


class Rank(TypedDict):
    """A text's place in TEI's answer."""

    index: int
    score: float
    text: NotRequired[str]
