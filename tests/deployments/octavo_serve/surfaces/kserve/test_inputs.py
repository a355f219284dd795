"""Tensors and fields say the same; what is of another type, or known to nobody, is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.surfaces.kserve.inputs import Inputs, of_fields, of_tensors
from octavo_serve.surfaces.kserve.schemas import INPUTS, GenerateRequest, InferRequest

TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Hi"]}


def tensor(name: str, value: Any, **changed: Any) -> dict[str, Any]:
    return {"name": name, "datatype": INPUTS.get(name, "BYTES"), "shape": [1], "data": [value]} | changed


def tensors(*others: dict[str, Any], **body: Any) -> Inputs:
    return of_tensors(parse(InferRequest, {"inputs": [TEXT, *others]} | body))


def fields(**body: Any) -> Inputs:
    return of_fields(parse(GenerateRequest, {"text_input": "Hi"} | body))


def test_alone() -> None:
    assert tensors() == fields() == Inputs(text="Hi")


def test_tensors_fields_and_parameters_are_the_same() -> None:
    asked = {"exclude_input_in_output": True, "return_logprobs": True}
    wanted = Inputs(text="Hi", prepend=False, outputs=("text_output", "logprobs"), sampling={"n": 2})
    assert tensors(*(tensor(*one) for one in asked.items()), parameters={"n": 2}) == wanted
    assert tensors(*(tensor(*one) for one in asked.items()), tensor("sampling_parameters", '{"n": 2}')) == wanted
    assert fields(**asked, n=2) == fields(parameters=asked | {"n": 2}) == wanted
    assert fields(**asked, sampling_parameters='{"n": 2}', parameters={"n": 3}) == wanted


def test_a_stream_does_not_repeat_its_input() -> None:
    assert fields(stream=True) == Inputs(text="Hi", stream=True, prepend=False)
    with pytest.raises(BadRequest, match="exclude_input_in_output must be true"):
        fields(stream=True, exclude_input_in_output=False)


def test_which_outputs_and_which_as_bytes() -> None:
    more = tensor("return_finish_reason", True)
    assert tensors(more, parameters={"binary_data_output": True}).binary == {"text_output", "finish_reason"}
    outputs = [{"name": "finish_reason", "parameters": {"binary_data": False}}, {"name": "text_output"}]
    found = tensors(more, outputs=outputs, parameters={"binary_data_output": True})
    assert (found.outputs, found.binary) == (("finish_reason", "text_output"), {"text_output"})


def test_shapes() -> None:
    assert tensors(tensor("stream", False, shape=[1, 1], data=[[False]])) == tensors()
    assert tensors(tensor("stream", None, shape=[], data=False)) == tensors()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([tensor("text_inputs", "a")], "unknown input 'text_inputs': did you mean 'text_input'?"),
        ([tensor("image", "a")], "image is not supported"),
        ([tensor("embedding_request", "a")], "embedding_request is not supported"),
        ([TEXT], "input text_input comes twice"),
        ([tensor("stream", True, datatype="BYTES")], "input stream must be BOOL, got BYTES"),
        ([tensor("stream", 1)], "stream must be true or false"),
        ([tensor("stream", True, shape=[2], data=[True, True])], "input stream must hold one value"),
        ([tensor("sampling_parameters", 1)], "sampling_parameters must be one text"),
        ([tensor("sampling_parameters", "{")], "sampling_parameters must be a JSON object"),
        ([tensor("sampling_parameters", "\ud800")], "sampling_parameters must be a JSON object"),
        ([tensor("sampling_parameters", '{"lora_name": "mine"}')], "an adapter is asked for by its own name"),
    ],
)
def test_inputs_that_are_refused(given: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        tensors(*given)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"outputs": [{"name": "text"}]}, "unknown output 'text'"),
        ({"outputs": [{"name": "logprobs"}]}, "where the input return_logprobs is true"),
        ({"outputs": [{"name": "text_output", "parameters": {"classification": 1}}]}, "classification of an output"),
        ({"outputs": [{"name": "text_output", "parameters": {"binary_data": 1}}]}, "binary_data must be true or false"),
        ({"parameters": {"binary_data_output": "yes"}}, "binary_data_output must be true or false"),
        ({"parameters": {"lora_name": "mine"}}, "an adapter is asked for by its own name"),
        ({"inputs": []}, "text_input is required"),
    ],
)
def test_bodies_that_are_refused(body: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        tensors(**body)
    assert says in str(refused.value)


@pytest.mark.parametrize("body", [{"n": 1, "parameters": {"n": 1}}, {"parameters": {"text_input": "Hello"}}])
def test_nothing_comes_twice(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="comes twice, in the body and in its parameters"):
        fields(**body)


@pytest.mark.parametrize("body", [{"stream": "true"}, {"parameters": {"stream": 1}}, {"return_logprobs": []}])
def test_fields_that_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="must be true or false"):
        fields(**body)
