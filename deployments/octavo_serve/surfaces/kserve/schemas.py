"""Bodies and answers of KServe's Open Inference Protocol (v2), and of Triton's extensions: generate, binary tensors.

The inputs and outputs of a model are those of Triton's vLLM backend.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.request import MAX_LOGPROBS
from octavo_serve.api.body import Body
from octavo_serve.api.fields import AtMost, Integer, Name, Options, within
from octavo_serve.surfaces.openai.schemas import SamplingBody

RETURNS = {
    "return_finish_reason": "finish_reason",
    "return_cumulative_logprob": "cumulative_logprob",
    "return_logprobs": "logprobs",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}
"""Inputs that ask for an output beside the text -> the output."""

INPUTS = {
    "text_input": "BYTES",
    "stream": "BOOL",
    "sampling_parameters": "BYTES",
    "exclude_input_in_output": "BOOL",
    **dict.fromkeys(RETURNS, "BOOL"),
}
OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "cumulative_logprob": "FP32",
    "logprobs": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}
"""Names -> datatypes."""

MAX_TENSORS = 32
MAX_DIMS = 8


class Tensor(Body):
    """One input."""

    name: Name
    datatype: Name
    shape: Annotated[list[Integer], AtMost(MAX_DIMS)]
    data: Any = Field(default=None, description="One value, in lists as its shape says; or bytes after the JSON.")
    parameters: Options | None = None


class RequestedOutput(Body):
    name: Name
    parameters: Options | None = None


class InferRequest(Body):
    """Body of /v2/models/NAME/infer; tensors may follow it as bytes."""

    id: Name | None = None
    inputs: Annotated[list[Tensor], AtMost(MAX_TENSORS)]
    outputs: Annotated[list[RequestedOutput], AtMost(MAX_TENSORS)] | None = None
    parameters: Options | None = Field(default=None, description="binary_data_output; sampling, by vLLM's names.")


class GenerateRequest(Body):
    """Body of /v2/models/NAME/generate and /generate_stream; whatever else it holds is a parameter."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Name | None = None
    text_input: str
    parameters: Options | None = Field(default=None, description="Inputs by name; sampling, by vLLM's names.")


class Sampling(SamplingBody):
    """Sampling parameters; `asking` knows which of these names vLLM has."""

    logprobs: Integer | None = within(0, MAX_LOGPROBS)


class OutputTensor(TypedDict):
    name: str
    datatype: str
    shape: list[int]
    data: NotRequired[list[Any]]
    parameters: NotRequired[dict[str, int]]


class Inferred(TypedDict):
    """Answer of /infer."""

    id: NotRequired[str]
    model_name: str
    model_version: str
    outputs: list[OutputTensor]


class Generated(TypedDict):
    """Answer of /generate, and an event of /generate_stream: lists where there are several sequences."""

    id: NotRequired[str]
    model_name: str
    model_version: str
    text_output: str | list[str]
    finish_reason: NotRequired[str | list[str]]
    cumulative_logprob: NotRequired[float | list[float]]
    logprobs: NotRequired[str | list[str]]
    num_input_tokens: NotRequired[int]
    num_output_tokens: NotRequired[int | list[int]]


class ErrorBody(TypedDict):
    error: str


# ── what the server says of itself ──


class Live(TypedDict):
    live: bool


class Ready(TypedDict):
    ready: bool


class ModelReady(TypedDict):
    name: str
    ready: bool


class Server(TypedDict):
    """Answer of /v2."""

    name: Literal["octavo"]
    version: str
    extensions: list[str]


class Described(TypedDict):
    name: str
    datatype: str
    shape: list[int]


class Model(TypedDict):
    """Answer of /v2/models/NAME."""

    name: str
    versions: list[str]
    platform: Literal["octavo"]
    inputs: list[Described]
    outputs: list[Described]


class Configured(TypedDict):
    name: str
    data_type: str
    dims: list[int]
    optional: NotRequired[bool]


class Config(TypedDict):
    """Answer of /v2/models/NAME/config, in Triton's words."""

    name: str
    platform: Literal["octavo"]
    backend: Literal["octavo"]
    max_batch_size: int
    input: list[Configured]
    output: list[Configured]
    model_transaction_policy: dict[str, bool]
