"""Triton's `tritonclient[http]`: tensors as bytes, its default, and as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tritonclient.http as triton
from cases import ASKED, MODEL, URL, check, run
from tritonclient.utils import InferenceServerException

CLIENT = triton.InferenceServerClient(URL.removeprefix("http://"))
TYPES = {str: ("BYTES", np.object_), bool: ("BOOL", np.bool_)}


def tensors(binary: bool = True, **values: Any) -> list[triton.InferInput]:
    found = []
    for name, value in values.items():
        kind, of_numpy = TYPES[type(value)]
        found.append(triton.InferInput(name, [1], kind))
        found[-1].set_data_from_numpy(np.array([value], dtype=of_numpy), binary_data=binary)
    return found


def text(result: triton.InferResult) -> str:
    return str(result.as_numpy("text_output")[0].decode())


def server() -> None:
    check(CLIENT.is_server_live() and CLIENT.is_server_ready() and CLIENT.is_model_ready(MODEL))
    check(CLIENT.is_model_ready(MODEL, "1") and not CLIENT.is_model_ready("other"))
    check("binary_tensor_data" in CLIENT.get_server_metadata()["extensions"])
    check(CLIENT.get_model_metadata(MODEL)["inputs"][0]["name"] == "text_input")
    check(CLIENT.get_model_config(MODEL)["max_batch_size"] == 0)


def infer() -> None:
    result = CLIENT.infer(MODEL, tensors(text_input=ASKED), request_id="7", parameters={"max_tokens": 20})
    check(text(result).startswith(ASKED) and "Paris" in text(result), text(result))
    check(result.get_response()["id"] == "7", result.get_response())


def as_json() -> None:
    output = triton.InferRequestedOutput("text_output", binary_data=False)
    told = CLIENT.infer(MODEL, tensors(False, text_input=ASKED), outputs=[output], parameters={"max_tokens": 20})
    check("Paris" in told.get_output("text_output")["data"][0], told.get_response())


def every_input_and_output() -> None:
    names = "finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens"
    sampling = json.dumps({"temperature": "0", "max_tokens": "20", "logprobs": "1"})
    asked = tensors(
        text_input=ASKED,
        stream=False,
        exclude_input_in_output=True,
        sampling_parameters=sampling,
        **{f"return_{name}": True for name in names},
    )
    outputs = [triton.InferRequestedOutput(name) for name in ("text_output", *names)]
    told = CLIENT.infer(MODEL, asked, outputs=outputs)
    found = {name: told.as_numpy(name)[0] for name in names}
    check(text(told) == "The capital of France is Paris.", text(told))
    check(found["finish_reason"] == b"stop" and found["num_input_tokens"] > 5, found)
    check(len(json.loads(found["logprobs"])) == found["num_output_tokens"], found)
    check(found["cumulative_logprob"].dtype == np.float32, found)


def asynchronous() -> None:
    waiting = CLIENT.async_infer(MODEL, tensors(text_input=ASKED), parameters={"max_tokens": 20})
    check("Paris" in text(waiting.get_result()))


def refused() -> None:
    for model, asked in ((MODEL, tensors(text_inputs=ASKED)), ("other", tensors(text_input=ASKED))):
        try:
            CLIENT.infer(model, asked)
        except InferenceServerException as error:
            check("unknown input" in str(error) or "does not exist" in str(error), error)
        else:
            check(False)


run("triton", "tritonclient", server, infer, as_json, every_input_and_output, asynchronous, refused)
