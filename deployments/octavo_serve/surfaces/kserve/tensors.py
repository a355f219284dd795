"""Tensors as bytes after a body's JSON, and after an answer's: Triton's binary tensor data extension."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import BodyBounds
from octavo_serve.api.surface import Encoded, Raw
from octavo_serve.surfaces.kserve.schemas import Inferred, InferRequest, OutputTensor, Tensor

HEADER = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
_SIZE = "binary_data_size"


def read(headers: Mapping[str, str], body: bytes, bounds: BodyBounds) -> InferRequest:
    """A body of /infer, whose tensors then have their values in `data`.

    Raises:
        BadRequest: it is malformed.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise BadRequest("a compressed body is not supported: send it as it is")
    length = _length(headers, body)
    request = parse(InferRequest, body[:length], bounds)
    rest = body[length:]
    for tensor in request.inputs:
        size = _size(tensor)
        if size is not None:
            if size > len(rest):
                raise BadRequest(f"input {tensor.name:.80} has {len(rest)} bytes, not {size}", "inputs")
            tensor.data, rest = _value(tensor, rest[:size]), rest[size:]
    if rest:
        raise BadRequest(f"{len(rest)} bytes follow the last tensor", "inputs")
    return request


def _length(headers: Mapping[str, str], body: bytes) -> int:
    """Bytes of the JSON."""
    told = headers.get(HEADER)
    if told is None:
        return len(body)
    if not (told.isascii() and told.isdigit() and len(told) < 20 and 0 < int(told) <= len(body)):
        raise BadRequest(f"{HEADER} must be the length of the JSON at the beginning of the body, got {told!r:.40}")
    return int(told)


def _size(tensor: Tensor) -> int | None:
    for name, value in (tensor.parameters or {}).items():
        if name != _SIZE or isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadRequest(f"parameters of the input {tensor.name:.80} may hold a {_SIZE} alone", "inputs")
        return value
    return None


def _value(tensor: Tensor, data: bytes) -> Any:
    """The one value of a tensor; the caller checks whether the model has such an input."""
    if tensor.datatype == "BOOL" and data in (b"\0", b"\1"):
        return data == b"\1"
    if tensor.datatype == "BYTES" and len(data) >= 4 and int.from_bytes(data[:4], "little") == len(data) - 4:
        try:
            return data[4:].decode()
        except UnicodeDecodeError:
            raise BadRequest(f"input {tensor.name:.80} is not a text in UTF-8", "inputs") from None
    raise BadRequest(f"input {tensor.name:.80} must be one value, BYTES or BOOL", "inputs")


RAW = Raw(OCTETS, read)


def encoded(answer: Inferred, binary: Collection[str], to_json: Callable[[Any], bytes]) -> Encoded:
    """An answer whose outputs of these names follow its JSON as bytes."""
    parts: list[bytes] = []
    outputs: list[OutputTensor] = []
    for output in answer["outputs"]:
        if output["name"] in binary:
            parts.append(b"".join(_PACK[output["datatype"]](value) for value in output["data"]))
            output = {**output, "parameters": {_SIZE: len(parts[-1])}}
            del output["data"]
        outputs.append(output)
    header = to_json({**answer, "outputs": outputs})
    if not parts:
        return Encoded(header)
    return Encoded(b"".join([header, *parts]), OCTETS, {HEADER: str(len(header))})


def _bytes(text: str) -> bytes:
    data = text.encode("utf-8", "replace")  # half of a surrogate pair has no bytes
    return len(data).to_bytes(4, "little") + data


_PACK: dict[str, Callable[[Any], bytes]] = {
    "BYTES": _bytes,
    "FP32": struct.Struct("<f").pack,
    "UINT32": struct.Struct("<I").pack,
}
