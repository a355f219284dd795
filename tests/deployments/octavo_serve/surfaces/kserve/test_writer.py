"""Answers of KServe's protocol hold what /v1/completions says of the same request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.errors import OctavoError

TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Hi"]}
RETURNED = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
ALL = {f"return_{name}": True for name in RETURNED}


def events(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n")[:-1]]


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {one["name"]: one["data"] for one in answer.json()["outputs"]}


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/v2/models/tiny/versions/1"])
def test_an_answer(post: Any, path: str) -> None:
    answer = post(f"{path}/infer", {"inputs": [TEXT], "id": "7"}).json()
    assert answer == {
        "id": "7",
        "model_name": "tiny",
        "model_version": "1",
        "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [1], "data": ["HiParis."]}],
    }
    generated = post(f"{path}/generate", {"text_input": "Hi", "exclude_input_in_output": True}).json()
    assert generated == {"model_name": "tiny", "model_version": "1", "text_output": "Paris."}


def test_every_output(post: Any, client: Any) -> None:
    client.texts = ["Paris.", "Rome."]
    answer = post("/v2/models/tiny/generate", {"text_input": "Hi", "n": 2, "logprobs": 0} | ALL).json()
    assert answer["text_output"] == ["HiParis.", "HiRome."]
    assert (answer["finish_reason"], answer["num_input_tokens"]) == (["stop", "stop"], 1)
    told = [json.loads(one) for one in answer["logprobs"]]
    assert [len(one) for one in told] == answer["num_output_tokens"]
    assert answer["cumulative_logprob"] == [-2.0, -4.0]
    ((token_id, first),) = told[0][0].items()
    assert (int(token_id) > 0, first) == (True, {"logprob": -0.5, "rank": 1, "decoded_token": "Paris"})
    assert post("/v2/models/tiny/generate", {"text_input": "Hi"} | ALL).json()["logprobs"] == "null"


def test_the_best_of_several(post: Any, client: Any) -> None:
    client.texts = ["Paris.", "Rome.", "Oslo."]
    answer = post("/v2/models/tiny/generate", {"text_input": "", "n": 2, "best_of": 3}).json()
    assert answer["text_output"] == ["Paris.", "Rome."]


def test_a_stream(post: Any, client: Any) -> None:
    client.texts = ["Paris, France."]
    path, asked = "/v2/models/tiny/generate_stream", {"text_input": "Hi"}
    found = events(post(path, asked | {"stream": True}))
    assert len(found) > 1
    assert "".join(event["text_output"] for event in found) == "Paris, France."
    full = events(post(path, asked | ALL | {"stream": True, "logprobs": 0}))
    assert [event["finish_reason"] for event in full] == ["None"] * (len(full) - 1) + ["stop"]
    assert sum(event["num_output_tokens"] for event in full) == sum(len(json.loads(e["logprobs"])) for e in full)
    (whole,) = events(post(path, asked))
    assert whole == post("/v2/models/tiny/generate", asked).json()


def test_errors(post: Any, client: Any) -> None:
    for where, status in (("other", 404), ("tiny/versions/2", 404), ("a/b", 404)):
        for path in ("infer", "generate", "generate_stream"):
            body = {"inputs": [TEXT]} if path == "infer" else {"text_input": "Hi"}
            refused = post(f"/v2/models/{where}/{path}", body)
            assert (refused.status_code, list(refused.json())) == (status, ["error"])
    assert post("/v2/models/tiny/generate", {"text_input": "Hi", "max_tokens": 999}).status_code == 400
    client.late_error, client.fail_after = OctavoError("not a number"), 1
    *_, last = events(post("/v2/models/tiny/generate_stream", {"text_input": "Hi", "stream": True}))
    assert last == {"error": "not a number"}


def test_the_same_as_completions(in_process: Any, post: Any) -> None:
    post.service = in_process.service
    sampling = {"temperature": 0.9, "top_k": 200, "min_p": 0, "seed": 3, "max_tokens": 40, "logprobs": 2}
    (choice,) = post("/v1/completions", {"prompt": "Hello", "return_token_ids": True} | sampling).json()["choices"]
    asked = {"text_input": "Hello", "exclude_input_in_output": True}
    found = post("/v2/models/tiny/generate", asked | ALL | {"parameters": sampling}).json()
    assert found["text_output"] == choice["text"]
    assert (found["finish_reason"], found["num_output_tokens"]) == (choice["finish_reason"], len(choice["token_ids"]))
    told = json.loads(found["logprobs"])
    wanted = choice["logprobs"]["token_logprobs"]
    own = [place[str(token_id)]["logprob"] for place, token_id in zip(told, choice["token_ids"], strict=True)]
    assert own == wanted
    assert found["cumulative_logprob"] == pytest.approx(sum(wanted), rel=1e-5)
    tensor = {"name": "sampling_parameters", "datatype": "BYTES", "shape": [1], "data": [json.dumps(sampling)]}
    exclude = {"name": "exclude_input_in_output", "datatype": "BOOL", "shape": [1], "data": [True]}
    hello = TEXT | {"data": ["Hello"]}
    inferred = outputs(post("/v2/models/tiny/infer", {"inputs": [hello, tensor, exclude]}))
    assert inferred == {"text_output": [choice["text"]]}
