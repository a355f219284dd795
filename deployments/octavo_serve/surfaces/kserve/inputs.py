"""What a request's tensors and parameters say, by the names of Triton's vLLM backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.config import unknown_key
from octavo.errors import BadRequest
from octavo_serve.api.body import fields_of
from octavo_serve.api.bounds import BodyBounds
from octavo_serve.surfaces.kserve.schemas import (
    INPUTS,
    OUTPUTS,
    RETURNS,
    GenerateRequest,
    InferRequest,
    RequestedOutput,
    Tensor,
)

BINARY = "binary_data_output"
_REFUSED = {
    "image": "image is not supported: the models here read text",
    "embedding_request": "embedding_request is not supported: the models here write text",
    "lora_name": "lora_name is not taken: an adapter is asked for by its own name, in the model's place",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One request.

    Attributes:
        sampling: parameters by vLLM's names, not validated yet.
        outputs: names of those that are answered, in this order.
        binary: those of them that are answered as bytes.
    """

    text: str
    stream: bool = False
    prepend: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("text_output",)
    binary: frozenset[str] = frozenset()


def of_tensors(body: InferRequest) -> Inputs:
    """The inputs of /infer.

    Raises:
        BadRequest: a tensor or an output is unknown, of another type, or comes twice.
    """
    values: dict[str, Any] = {}
    for tensor in body.inputs:
        if tensor.name in values:
            raise BadRequest(f"input {tensor.name} comes twice", "inputs")
        values[tensor.name] = _value_of(tensor)
    parameters = dict(body.parameters or {})
    all_binary = _flag(BINARY, parameters.pop(BINARY, False))
    produced = _produced(values)
    outputs = body.outputs or [RequestedOutput(name=name) for name in produced]
    binary = frozenset(one.name for one in outputs if _is_binary(one, all_binary))
    names = tuple(_output(one.name, produced) for one in outputs)
    return _inputs(values, parameters, outputs=names, binary=binary)


def of_fields(body: GenerateRequest) -> Inputs:
    """The inputs of /generate: fields of the body, or of its parameters.

    Raises:
        BadRequest: one has another type, or comes twice.
    """
    fields, parameters = {**(body.model_extra or {}), "text_input": body.text_input}, body.parameters or {}
    if twice := next((name for name in fields if name in parameters), None):
        raise BadRequest(f"{twice:.80} comes twice, in the body and in its parameters", "parameters")
    given = {**fields, **parameters}
    values = {name: _typed(name, value) for name, value in given.items() if name in INPUTS and value is not None}
    sampling = {name: value for name, value in given.items() if name not in INPUTS}
    return _inputs(values, sampling, outputs=_produced(values))


def _inputs(values: Mapping[str, Any], parameters: Mapping[str, Any], **more: Any) -> Inputs:
    if "text_input" not in values:
        raise BadRequest("the input text_input is required", "text_input")
    for name in (*values, *parameters):
        if name in _REFUSED:
            raise BadRequest(_REFUSED[name], name)
    stream = values.get("stream", False)
    excluded = values.get("exclude_input_in_output", stream)
    if stream and not excluded:
        raise BadRequest(
            "exclude_input_in_output must be true, or left out, in a stream: it does not repeat its input",
            "exclude_input_in_output",
        )
    sampling = dict(parameters)
    if text := values.get("sampling_parameters"):
        sampling |= _decoded(text)
        if "lora_name" in sampling:
            raise BadRequest(_REFUSED["lora_name"], "sampling_parameters")
    return Inputs(text=values["text_input"], stream=stream, prepend=not excluded, sampling=sampling, **more)


def _decoded(text: str) -> dict[str, Any]:
    try:
        return fields_of(text.encode("utf-8", "surrogatepass"), BodyBounds())
    except BadRequest as error:
        raise BadRequest(f"sampling_parameters must be a JSON object: {error}", "sampling_parameters") from None


def _value_of(tensor: Tensor) -> Any:
    if tensor.name not in INPUTS:
        if tensor.name in _REFUSED:
            raise BadRequest(_REFUSED[tensor.name], tensor.name)
        raise BadRequest(unknown_key(tensor.name, list(INPUTS), "input"), "inputs")
    if tensor.datatype != INPUTS[tensor.name]:
        raise BadRequest(f"input {tensor.name} must be {INPUTS[tensor.name]}, got {tensor.datatype:.20}", tensor.name)
    value = tensor.data
    if any(size != 1 for size in tensor.shape):
        raise BadRequest(f"input {tensor.name} must hold one value, with shape [1]", tensor.name)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return _typed(tensor.name, value)


def _typed(name: str, value: Any) -> Any:
    if INPUTS[name] == "BOOL":
        return _flag(name, value)
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be one text", name)
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false", name)
    return value


def _produced(values: Mapping[str, Any]) -> tuple[str, ...]:
    return "text_output", *(output for asks, output in RETURNS.items() if values.get(asks))


def _output(name: str, produced: Sequence[str]) -> str:
    if name not in OUTPUTS:
        raise BadRequest(unknown_key(name, list(OUTPUTS), "output"), "outputs")
    if name not in produced:
        raise BadRequest(f"output {name} is there where the input return_{name} is true", "outputs")
    return name


def _is_binary(output: RequestedOutput, otherwise: bool) -> bool:
    parameters = output.parameters or {}
    if unknown := next((name for name in parameters if name != "binary_data"), None):
        raise BadRequest(f"{unknown:.80} of an output is not supported: leave it out", "outputs")
    return _flag("binary_data", parameters.get("binary_data", otherwise))
