"""Bodies, answers and events of Text Generation Inference (TGI), as its server and its clients write them."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.request import INT64, MAX_LOGPROBS, MAX_N, MAX_STOP
from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_PROMPT_TOKENS
from octavo_serve.api.fields import AtMost, Integer, Name, Schema, StopString
from octavo_serve.api.operation import Query


class Grammar(Body):
    """What the text must be."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: Schema = Field(description='A JSON schema, or its text; for "json_schema" {"schema": ...}; or a regex.')


class Parameters(Body):
    """How to generate; None means the default."""

    do_sample: bool | None = Field(default=None, description="False is greedy, unless a field below asks for sampling.")
    temperature: Annotated[float, Field(gt=0, le=100)] | None = Field(default=None, description="Not 1: samples.")
    top_k: Annotated[Integer, Field(ge=1)] | None = Field(default=None, description="Samples.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="Less than 1: samples.")
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    max_new_tokens: Annotated[Integer, Field(ge=1, le=INT64[1])] | None = None
    stop: Annotated[list[StopString], AtMost(MAX_STOP)] | None = Field(default=None, description="Kept in the text.")
    truncate: Annotated[Integer, Field(ge=1, le=MAX_PROMPT_TOKENS)] | None = Field(
        default=None, description="Tokens of the input that are read, the last ones."
    )
    grammar: Grammar | None = None
    best_of: Annotated[Integer, Field(ge=1, le=MAX_N)] | None = None
    return_full_text: bool | None = Field(default=None, description="Whether the input comes before the text.")
    details: bool | None = None
    decoder_input_details: bool | None = Field(default=None, description="Log probabilities of the input's tokens.")
    top_n_tokens: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    # refused by a sentence in `asking`, not by their types: clients that stream read it from an event
    typical_p: float | None = Field(default=None, description="Refused unless null.")
    watermark: bool | None = Field(default=None, description="Refused if true.")
    adapter_id: Name | None = Field(default=None, description="Refused unless null or empty.")


class GenerateRequest(Body):
    """Body of /generate and /generate_stream."""

    inputs: Annotated[str, Field(min_length=1)]
    parameters: Parameters | None = None
    model: Name | None = Field(default=None, description="Not TGI's: where several models are served.")


class CompatRequest(GenerateRequest):
    """Body of / and /models/NAME."""

    stream: bool | None = None


class PrefillToken(TypedDict):
    id: int
    text: str
    logprob: float | None


class Token(TypedDict):
    id: int
    text: str
    logprob: float | None
    special: bool


FinishReason = Literal["length", "eos_token", "stop_sequence"]


class SequenceDetails(TypedDict):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: NotRequired[list[list[Token]]]


class BestOfSequence(SequenceDetails):
    generated_text: str


class Details(SequenceDetails):
    best_of_sequences: NotRequired[list[BestOfSequence]]


class Generation(TypedDict):
    """Answer of /generate; / answers with a list of one."""

    generated_text: str
    details: NotRequired[Details]


class StreamDetails(TypedDict):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamEvent(TypedDict):
    """One token; the last event has the whole text."""

    index: int
    token: Token
    top_tokens: NotRequired[list[Token]]
    generated_text: str | None
    details: StreamDetails | None


class ErrorBody(TypedDict):
    error: str
    error_type: str


class OfModel(Query):
    model: Name | None = None


class Info(TypedDict):
    """Answer of /info. There is no limit here that TGI's other fields could tell."""

    model_id: str
    model_sha: None
    model_pipeline_tag: Literal["text-generation"]
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    max_client_batch_size: int
    router: Literal["octavo"]
    version: str
    sha: None
    docker_label: None


class PooledBy(TypedDict):
    pooling: Literal["cls", "mean", "last"]


class Classes(TypedDict):
    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(TypedDict, total=False):
    """One of these."""

    embedding: PooledBy
    reranker: Classes
    classifier: Classes


class PoolingModelInfo(TypedDict):
    """Answer of /info about a model that writes no text, as Text Embeddings Inference's."""

    model_id: str
    model_sha: None
    model_type: ModelType
    max_input_length: int
    max_client_batch_size: int
    auto_truncate: Literal[False]
    version: str
    sha: None
    docker_label: None
