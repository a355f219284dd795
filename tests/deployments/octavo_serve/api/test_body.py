"""Hostile bodies: each is refused with one sentence, whatever its size, and costs no more than an honest one."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import fields_of, parse
from octavo_serve.api.bounds import MAX_DEPTH, BodyBounds
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.kserve.schemas import GenerateRequest, InferRequest
from octavo_serve.surfaces.tokens.schemas import DetokenizeRequest

BOUNDS = BodyBounds(8192)
SIZE = BOUNDS.num_bytes - 100


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    """As many units as the largest body has room for."""
    return before + unit * ((SIZE - len(before) - len(after)) // len(unit)) + after


HELLO = b'{"messages":[{"role":"user"}]'
HOSTILE: dict[str, tuple[Any, bytes, str]] = {
    "nulls as prompt": (CompletionRequest, filled(b'{"prompt":[', b"null,", b"null]}"), "prompt must be a string"),
    "ids, then a string": (CompletionRequest, filled(b'{"prompt":[', b"1,", b'"a"]}'), "prompt must be a string"),
    "too many ids": (CompletionRequest, filled(b'{"prompt":[', b"1,", b"1]}"), "prompt must be .*length <= 1048576"),
    "empty lists": (CompletionRequest, filled(b'{"prompt":[', b"[],", b"[]]}"), "brackets and keys"),
    "nulls as messages": (ChatRequest, filled(b'{"messages":[', b"null,", b"null]}"), "messages holds more than"),
    "messages": (ChatRequest, filled(b'{"messages":[', b"{},", b"{}]}"), "brackets and keys"),
    "contents": (
        ChatRequest,
        filled(b'{"messages":[{"role":"user","content":[', b"1,", b"1]}]}"),
        "messages holds more than",
    ),
    "stop": (
        ChatRequest,
        filled(b'{"messages":[{"role":"user"}],"stop":[', b'"a",', b'"a"]}'),
        "stop is longer than",
    ),
    "a long stop": (
        ChatRequest,
        filled(b'{"messages":[{"role":"user"}],"stop":"', b"a", b'"}'),
        "stop is longer than",
    ),
    "stop_token_ids": (
        ChatRequest,
        filled(b'{"messages":[{"role":"user"}],"stop_token_ids":[', b"1,", b"1]}"),
        "stop_token_ids is longer than",
    ),
    "tools": (
        ChatRequest,
        filled(b'{"messages":[{"role":"user"}],"tools":[', b"1,", b"1]}"),
        "tools holds more than",
    ),
    "unknown fields": (
        ChatRequest,
        b"{" + b",".join(b'"k%d":1' % i for i in range(60_000)) + b"}",
        "unknown field 'k",
    ),
    "unknown options": (
        ChatRequest,
        b'{"messages":[{"role":"user"}],"stream_options":{' + b",".join(b'"k%d":1' % i for i in range(60_000)) + b"}}",
        "stream_options is longer than",
    ),
    "many keys": (ChatRequest, filled(b'{"a":{', b'"k":1,', b'"k":1}}'), "brackets and keys"),
    "logit_bias": (
        ChatRequest,
        b'{"messages":[{"role":"user"}],"logit_bias":{' + b",".join(b'"%d":1' % i for i in range(60_000)) + b"}}",
        "logit_bias is longer than",
    ),
    "a stop list of 80 kB": (
        ChatRequest,
        HELLO + b',"stop":[' + b'"a",' * 20_000 + b'"a"]}',
        "stop must have at most 16",
    ),
    "nulls of 80 kB": (ChatRequest, b'{"messages":[' + b"null," * 16_000 + b"null]}", "messages.0 must be"),
    "options of 80 kB": (
        ChatRequest,
        HELLO + b',"stream_options":{' + b",".join(b'"k%d":1' % i for i in range(8_000)) + b"}}",
        "too large",
    ),
    "two of a kind": (ChatRequest, filled(HELLO + b',"stop":[', b'"a",', b'"a"],"stop":7}'), "stop must be"),
    "a huge key": (ChatRequest, filled(b'{"', b"k", b'":1}'), "messages' is required|unknown field 'kkk"),
    "a huge model": (
        ChatRequest,
        filled(b'{"messages":[{"role":"user"}],"model":"', b"m", b'"}'),
        "model is longer than",
    ),
    "deep": (ChatRequest, b'{"messages":' + b"[" * 1_000_000, "brackets and keys"),
    "deep, within the bound": (ChatRequest, b'{"messages":' + b"[" * 60_000, "deeper than 64"),
    "deep and whole": (ChatRequest, b'{"messages":' + b"[" * 200 + b"]" * 200 + b"}", "deeper than 64"),
    "a deep option": (
        ChatRequest,
        b'{"messages":[{"role":"user"}],"chat_template_kwargs":{"a":' + b'{"a":' * 100 + b"1" + b"}" * 102,
        "deeper than 64",
    ),
    "a huge integer": (
        ChatRequest,
        filled(b'{"messages":[{"role":"user"}],"seed":', b"9", b"}"),
        "seed is longer than",
    ),
    "an integer of 4,000 digits": (
        ChatRequest,
        b'{"messages":[{"role":"user"}],"seed":' + b"9" * 4000 + b"}",
        "seed must be .*64 bits",
    ),
    "an integer of 65 bits": (
        ChatRequest,
        b'{"messages":[{"role":"user"}],"top_k":36893488147419103232}',
        "top_k must be less than",
    ),
    "ids of 65 bits": (CompletionRequest, b'{"prompt":[36893488147419103232]}', "prompt must be a string"),
    "tokens of 65 bits": (DetokenizeRequest, b'{"tokens":[36893488147419103232]}', "tokens must be a list of token"),
    "a huge float": (ChatRequest, b'{"messages":[{"role":"user"}],"temperature":1e999}', "out of range"),
    "NaN": (ChatRequest, b'{"messages":[{"role":"user"}],"temperature":NaN}', "not valid JSON"),
    "Infinity": (ChatRequest, b'{"messages":[{"role":"user"}],"temperature":-Infinity}', "not valid JSON"),
    "byte order mark": (ChatRequest, b'\xef\xbb\xbf{"messages":[]}', "not valid JSON"),
    "no UTF-8": (ChatRequest, b'{"messages":[{"role":"user"}],"user":"\xff"}', "not valid JSON"),
    "half a surrogate": (ChatRequest, rb'{"messages":[{"role":"user"}],"user":"\ud800"}', "not valid JSON"),
    "a control character": (ChatRequest, b'{"messages":[{"role":"user"}],"user":"\x00"}', "not valid JSON"),
    "truncated": (ChatRequest, b'{"messages":[{"role":"user","content":"a', "not valid JSON"),
    "two objects": (ChatRequest, b"{}{}", "not valid JSON"),
    "nothing": (ChatRequest, b"", "not valid JSON"),
    "a list": (ChatRequest, b"[]", "must be a JSON object"),
    "tensors": (InferRequest, filled(b'{"inputs":[', b"1,", b"1]}"), "inputs holds more than"),
    "tensors of 80 kB": (InferRequest, b'{"inputs":[' + b"{}," * 25_000 + b"{}]}", "inputs.0.name' is required"),
    "a shape": (InferRequest, filled(b'{"inputs":[{"shape":[', b"1,", b"1]}]}"), "inputs holds more than"),
    "fields that are parameters": (
        GenerateRequest,
        b'{"text_input":1,' + b",".join(b'"k%d":1' % i for i in range(60_000)) + b"}",
        "text_input must be",
    ),
    "parameters": (
        GenerateRequest,
        b'{"text_input":"a","parameters":{' + b",".join(b'"k%d":1' % i for i in range(8_000)) + b"}}",
        "parameters must have at most 64 entries",
    ),
}


@pytest.mark.parametrize(("kind", "body", "sentence"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_costs_one_short_error(kind: Any, body: bytes, sentence: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match=sentence) as caught:
            parse(kind, body, BOUNDS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1500  # a hint for an unknown field lists the valid ones
    assert len(caught.value.param or "") < 200
    assert peak < 48 * 2**20  # the nulls alone once took 0.9 GB


def test_the_last_of_equal_keys_counts() -> None:
    assert fields_of(b'{"a":1,"a":2}', BOUNDS) == {"a": 2}


def test_escapes_and_pairs_of_surrogates_are_text() -> None:
    assert fields_of(rb'{"a":"\u00e9\ud83c\udf09"}', BOUNDS) == {"a": "é🌉"}


def test_nesting_up_to_the_bound_is_fine() -> None:
    inner: Any = "x"
    for _ in range(MAX_DEPTH - 2):
        inner = [inner]
    parse(ChatRequest, {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": inner}})


def test_mappings_are_bounded_too() -> None:
    cycle: list[Any] = []
    cycle += [cycle, cycle]
    for fields, sentence in [
        ({"messages": [{"role": "user"}], "chat_template_kwargs": {"a": cycle}}, "deeper than 64"),
        ({"messages": [{"role": "user"}] * 100_000}, "at most 65536 entries"),
        ({"messages": [None] * 1000}, "messages.0"),
        ({"messages": [{"role": "user"}], "seed": 10**5000}, "more than 64 bits"),
        ({"messages": [{"role": "user"}], "stop": {"a": [0] * 10**6}}, "stop must be"),
        ({"messages": [{"role": "user"}], "stop": {"a": 10**5000}}, "stop must be"),
        ({"messages": [{"role": "user"}], "user": "\ud800"}, "user"),
        ({"messages": [{"role": "user"}], 3: 4}, "3 "),
    ]:
        with pytest.raises(BadRequest, match=sentence):
            parse(ChatRequest, fields)


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe{}", b'{"prompt": "\xff"}', b"[]", b"nul", b'{"prompt": "\\ud800"}'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(CompletionRequest, body)


@pytest.mark.parametrize("name", ["messages[0]", "int", "str", "a[b]", "constrained-x", ""])
def test_an_unknown_field_may_be_called_anything(name: str) -> None:
    with pytest.raises(BadRequest, match="unknown field") as caught:
        parse(CompletionRequest, {"prompt": "Hello", name: 1})
    assert caught.value.param == (name or None)
