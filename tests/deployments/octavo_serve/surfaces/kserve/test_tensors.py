"""Tensors as bytes: what is read, what is written, and what hostile sizes come to."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.bounds import BodyBounds
from octavo_serve.api.surface import to_json
from octavo_serve.surfaces.kserve.schemas import Inferred, InferRequest
from octavo_serve.surfaces.kserve.tensors import encoded, read


def text(value: bytes) -> bytes:
    return len(value).to_bytes(4, "little") + value


def body(*sizes: Any, datatype: str = "BYTES") -> bytes:
    inputs = [
        {"name": f"t{i}", "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": size}}
        for i, size in enumerate(sizes)
    ]
    return json.dumps({"inputs": inputs}).encode()


def told(head: bytes, rest: bytes = b"", **headers: str) -> InferRequest:
    return read({"Inference-Header-Content-Length": str(len(head))} | headers, head + rest, BodyBounds())


def test_values_follow_in_order() -> None:
    rest = text("Grüße".encode()) + text(b"")
    assert [one.data for one in told(body(11, 4), rest).inputs] == ["Grüße", ""]
    assert [one.data for one in told(body(1, 1, datatype="BOOL"), b"\1\0").inputs] == [True, False]


def test_json_alone() -> None:
    head = b'{"inputs": [{"name": "a", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}'
    assert read({}, head, BodyBounds()) == told(head)


@pytest.mark.parametrize(
    ("head", "rest", "says"),
    [
        (body(7), text(b"Hi"), "has 6 bytes, not 7"),
        (body(6), text(b"Hi") + b"!", "1 bytes follow the last tensor"),
        (body(2**63), text(b"Hi"), "has 6 bytes"),
        (body(-1), text(b"Hi"), "binary_data_size alone"),
        (body(True), text(b"Hi"), "binary_data_size alone"),
        (body("6"), text(b"Hi"), "binary_data_size alone"),
        (body(6), (2**32 - 1).to_bytes(4, "little") + b"Hi", "must be one value"),
        (body(12), text(b"Hi") + text(b"Hi"), "must be one value"),
        (body(3), b"\0\0\0", "must be one value"),
        (body(5), text(b"\xff"), "is not a text in UTF-8"),
        (body(1, datatype="BOOL"), b"\2", "must be one value"),
        (body(8, datatype="FP64"), bytes(8), "must be one value"),
        (b'{"inputs": [1]}', b"", "inputs"),
        (b"{", b"", "not valid JSON"),
    ],
)
def test_what_is_malformed(head: bytes, rest: bytes, says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        told(head, rest)
    assert says in str(refused.value)


@pytest.mark.parametrize("length", ["0", "-1", "1e3", "999999", "9" * 5000, "²", ""])
def test_lengths_that_are_none(length: str) -> None:
    with pytest.raises(BadRequest, match="must be the length of the JSON"):
        read({"Inference-Header-Content-Length": length}, body(6) + text(b"Hi"), BodyBounds())


def test_nothing_is_decompressed() -> None:
    with pytest.raises(BadRequest, match="compressed"):
        told(b"{}", **{"content-encoding": "gzip"})


def test_an_answer_as_bytes() -> None:
    answer: Inferred = {
        "model_name": "tiny",
        "model_version": "1",
        "outputs": [
            {"name": "text_output", "datatype": "BYTES", "shape": [2], "data": ["é", ""]},
            {"name": "cumulative_logprob", "datatype": "FP32", "shape": [1], "data": [-1.5]},
            {"name": "num_input_tokens", "datatype": "UINT32", "shape": [1], "data": [7]},
        ],
    }
    assert encoded(answer, (), to_json).content == to_json(answer)
    found = encoded(answer, {"text_output", "num_input_tokens"}, to_json)
    length = int(found.headers["Inference-Header-Content-Length"])
    head = json.loads(found.content[:length])
    assert head["outputs"][1] == answer["outputs"][1]
    assert head["outputs"][0] == {
        "name": "text_output",
        "datatype": "BYTES",
        "shape": [2],
        "parameters": {"binary_data_size": 10},
    }
    assert found.content[length:] == text("é".encode()) + text(b"") + struct.pack("<I", 7)
    assert found.media_type == "application/octet-stream"
