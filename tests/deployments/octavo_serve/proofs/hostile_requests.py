"""Hostile requests by the seed: what `hostile` sends. Every one is bytes for a raw connection, with pauses in between.

`attack(rng, model)` draws a kind, then one of its requests. Most must be refused; some are odd and yet valid, and ask
for a token or two. A long prompt that fits the context is not hostile: what it costs others is said by `target_itl`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.kserve.schemas import GenerateRequest as TritonRequest
from octavo_serve.surfaces.kserve.schemas import InferRequest
from octavo_serve.surfaces.messages.schemas import MessagesRequest
from octavo_serve.surfaces.tgi.schemas import GenerateRequest
from octavo_serve.surfaces.tokens.schemas import DetokenizeRequest, TokenizeRequest

HOST = b"Host: 127.0.0.1\r\n"
PATHS = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/messages": MessagesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/generate": GenerateRequest,
    "/v2/models/{model}/infer": InferRequest,
    "/v2/models/{model}/generate": TritonRequest,
}


@dataclass(frozen=True, slots=True)
class Attack:
    """One connection.

    Attributes:
        kind: what is wrong with it.
        sends: bytes to send, and seconds to wait.
        reads: how many bytes of the answer are read at most; then the connection is cut.
        complete: the server has all it needs to answer.
    """

    kind: str
    sends: list[bytes | float] = field(default_factory=list)
    reads: int = 2**20
    complete: bool = True


def attack(rng: random.Random, model: str) -> Attack:
    kind = rng.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    return _KINDS[kind][1](rng, model)


# ── bodies ──


def valid(rng: random.Random, model: str, path: str) -> dict[str, Any]:
    """A small request that would be answered."""
    text = f"request {rng.randrange(10**6)}"
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [text]}
    return {
        "/v1/chat/completions": {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1},
        "/v1/completions": {"model": model, "prompt": text, "max_tokens": 1},
        "/v1/messages": {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1},
        "/tokenize": {"model": model, "prompt": text},
        "/detokenize": {"model": model, "tokens": [1, 2, 3]},
        "/generate": {"model": model, "inputs": text, "parameters": {"max_new_tokens": 1}},
        "/v2/models/{model}/infer": {"inputs": [tensor], "parameters": {"max_tokens": 1}},
        "/v2/models/{model}/generate": {"text_input": text, "max_tokens": 1},
    }[path]


def post(path: str, body: bytes, headers: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + HOST + headers + b"Connection: close\r\n\r\n" + body


def to_json(body: object) -> bytes:
    return json.dumps(body).encode()


class _Raw:
    """JSON that Python's encoder does not write."""

    def __init__(self, text: str) -> None:
        self.text = text


WRONG: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    0.5,
    -0.0,
    2**31,
    2**63,
    2**64,
    2**70,
    -(2**70),
    1e308,
    5e-324,
    _Raw("1e999"),
    _Raw("9" * 400),
    _Raw("9" * 5000),
    _Raw("NaN"),
    _Raw("-Infinity"),
    _Raw("0x10"),
    _Raw("1."),
    _Raw("'a'"),
    "",
    " ",
    "a",
    "1",
    "true",
    "null",
    "\0",
    "\ud800",
    "\u202e",
    "🦒" * 10,
    "a" * 100_000,
    "%s%n{0}",
    "{{ 1/0 }}",
    "../../etc/passwd",
    "__class__",
    [],
    {},
    [[]],
    [{}],
    [None],
    [""],
    [0],
    [-1],
    [2**70],
    ["a", 1],
    {"": ""},
    {"a": 1},
    {"type": "x"},
    {"__proto__": 1},
    [1.5],
    [True],
    [["a"]],
    [[[1]]],
    {"a": {"a": {"a": []}}},
]


def _huge(rng: random.Random) -> Any:
    count = rng.choice((10**5, 3 * 10**5))
    return rng.choice(
        (
            lambda: [None] * count,
            lambda: [0] * count,
            lambda: ["a"] * count,
            lambda: [[]] * count,
            lambda: [{}] * count,
            lambda: {str(i): i for i in range(count)},
            lambda: rng.choice("7a🦒\0<") * count,
            lambda: "word " * (count // 5),
            lambda: [rng.randrange(2**40) for _ in range(count // 10)],
            lambda: [{"role": "user", "content": "a"}] * (count // 10),
            lambda: [{"role": "user", "content": [{"type": "text", "text": "a"}] * 100}] * (count // 1000),
            lambda: "<|im_start|>" * (count // 10),
        )
    )()


def _nested(rng: random.Random) -> _Raw:
    depth = rng.choice((50, 65, 500, 5000, 100_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"type":"text","text":', "}]")))
    return _Raw(opening * depth + "1" + (closing * depth if rng.random() < 0.8 else ""))


def _of(path: str, model: str) -> str:
    return path.replace("{model}", model)


def _field(rng: random.Random, path: str) -> str:
    return rng.choice([*PATHS[path].model_fields, "unknown", "", "__class__", "messages[0]"])


def _with(body: dict[str, Any], name: str, value: Any) -> bytes:
    if not isinstance(value, _Raw):
        return to_json({**body, name: value})
    marked = json.dumps({**body, name: "\x01"})
    return marked.replace('"\\u0001"', value.text).encode()


def _field_of(kind: str, draw: Callable[[random.Random], Any]) -> Callable[[random.Random, str], Attack]:
    def make(rng: random.Random, model: str) -> Attack:
        path = rng.choice(list(PATHS))
        return Attack(kind, [post(_of(path, model), _with(valid(rng, model, path), _field(rng, path), draw(rng)))])

    return make


def _wrong_fields(rng: random.Random, model: str) -> Attack:
    path = rng.choice(list(PATHS))
    body = valid(rng, model, path)
    for _ in range(rng.randrange(2, 6)):
        value = rng.choice(WRONG)
        body[_field(rng, path)] = None if isinstance(value, _Raw) else value
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 1:
        body["max_tokens"] = 1
    return Attack("wrong fields", [post(_of(path, model), to_json(body))])


def _broken_json(rng: random.Random, model: str) -> Attack:
    path = rng.choice(list(PATHS))
    whole = to_json(valid(rng, model, path))
    body = rng.choice(
        (
            lambda: whole[: rng.randrange(len(whole))],
            lambda: whole + whole,
            lambda: b"\xef\xbb\xbf" + whole,
            lambda: whole.replace(b'"', b"'"),
            lambda: whole.replace(b"request", b"\xff\xfe"),
            lambda: whole.decode().encode("utf-16"),
            lambda: whole[:-1] + b', "model": "other"}',
            lambda: b"[" + whole + b"]",
            lambda: rng.randbytes(rng.randrange(2000)),
            lambda: rng.choice((b"", b"null", b"1", b'""', b"[]", b"{}", b"tru", b'{"a"', b"\0", b"//", b"{" * 9999)),
            lambda: whole.replace(b":", b": " + b" " * 100_000),
        )
    )()
    return Attack("broken JSON", [post(_of(path, model), body)])


def _messages(rng: random.Random, model: str) -> Attack:
    odd = [value for value in WRONG if not isinstance(value, _Raw)]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": rng.choice(odd)}}
    messages = [
        rng.choice(
            (
                {"role": rng.choice(("user", "system", "tool", "x", "", 1, None)), "content": rng.choice(odd)},
                {"role": "assistant", "tool_calls": rng.choice(([call], call, [[]], [None], "x"))},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {
                    "role": "user",
                    "content": [{"type": rng.choice(("text", "image_url", "x")), "text": rng.choice(odd)}],
                },
                {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n" * 5},
                rng.choice(odd),
            )
        )
        for _ in range(rng.randrange(1, 5))
    ]
    body = valid(rng, model, "/v1/chat/completions") | {"messages": messages}
    return Attack("messages", [post("/v1/chat/completions", to_json(body))])


def _template(rng: random.Random, model: str) -> Attack:
    names = (
        "messages",
        "tools",
        "source",
        "self",
        "range",
        "namespace",
        "loop",
        "raise_exception",
        "bos_token",
        "a" * 999,
        "_octavo_deadline",
        "__class__",
        "add_generation_prompt",
        "enable_thinking",
        "context",
        "environment",
    )
    odd = [value for value in WRONG if not isinstance(value, _Raw)]
    kwargs = {rng.choice(names): rng.choice(odd) for _ in range(rng.randrange(1, 5))}
    extra: dict[str, Any] = {"chat_template_kwargs": kwargs, "continue_final_message": rng.choice((True, False, None))}
    if rng.random() < 0.3:
        extra["chat_template"] = "{% for a in range(10**9) %}{{ a }}{% endfor %}"
    if rng.random() < 0.3:
        extra["tools"] = [{"type": "function", "function": {"name": "f", "parameters": rng.choice(odd)}}] * 9
    return Attack(
        "template", [post("/v1/chat/completions", to_json(valid(rng, model, "/v1/chat/completions") | extra))]
    )


def _parameters(rng: random.Random, model: str) -> Attack:
    """Values at and beyond the ends of what is valid; they may be answered."""
    extra = rng.choice(
        (
            {"stop": [chr(97 + i) * rng.choice((1, 1024, 1025)) for i in range(rng.choice((1, 4, 16, 17)))]},
            {"stop_token_ids": [rng.randrange(-1, 60_000) for _ in range(rng.choice((1, 1024, 1025)))]},
            {"logit_bias": {str(rng.randrange(60_000)): rng.choice((-100, 100, 101)) for _ in range(300)}},
            {"logit_bias": {rng.choice(("a", "-1", "1e3", "٣", "9" * 30)): 1}},
            {"n": rng.choice((0, 1, 16, 128, 129)), "best_of": rng.choice((None, 1, 128))},
            {"logprobs": rng.choice((0, 20, 21, True)), "prompt_logprobs": rng.choice((0, 20, 21, None)), "echo": True},
            {"repetition_penalty": rng.choice((1e-38, 0, 100, 1e38)), "temperature": rng.choice((0, 1e-9, 100))},
            {"min_tokens": rng.choice((0, 1, 2, 10**9)), "ignore_eos": True},
            {"seed": rng.choice((-1, 0, 2**63, 2**64)), "top_k": rng.choice((-2, -1, 2**31, 2**62))},
            {"top_p": rng.choice((0, 1e-30, 1.0000001)), "min_p": rng.choice((-1, 1, 2))},
            {"prompt": [rng.randrange(-5, 60_000) for _ in range(rng.choice((1, 100, 9000)))]},
            {"prompt": ["a"] * rng.choice((0, 1, 64, 1025))},
            {"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": True}, "n": 4},
            {"cache_salt": "s" * rng.choice((1, 512, 513)), "priority": rng.choice((-(2**40), 0, 2**70))},
        )
    )
    body: dict[str, Any] = {**valid(rng, model, "/v1/completions"), **extra}
    return Attack("parameters", [post("/v1/completions", to_json(body))])


# ── HTTP ──


def _methods(rng: random.Random, model: str) -> Attack:
    method = rng.choice((b"GET", b"PUT", b"DELETE", b"TRACE", b"PATCH", b"OPTIONS", b"HEAD", b"post", b"BREW", b"G T"))
    path = rng.choice((*PATHS, "/v1/models", "/health", "/metrics", "/", "/v1/models/" + "a" * 999)).encode()
    return Attack("method", [method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"])


def _targets(rng: random.Random, model: str) -> Attack:
    target = rng.choice(
        (
            b"http://127.0.0.1/health",
            b"http://evil.example/v1/models",
            b"*",
            b"//",
            b"/%00",
            b"/%zz",
            b"/..%2f..%2fetc",
            b"/v1/models/" + b"%2e" * 200,
            b"/" + b"a" * 20_000,
            b"health",
            b"/\xff\xfe",
            b"/a b",
            b"",
            b"/?" + b"a=1&" * 999,
            b"/-/healthz",
            b"/-/routes",
            b"/docs",
            b"/openapi.json",
            b"/v1/models/%F0%9F%A6%92",
        )
    )
    version = rng.choice((b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9.9", b"HTTP", b""))
    return Attack("target", [b"GET " + target + b" " + version + b"\r\n" + HOST + b"Connection: close\r\n\r\n"])


def _headers(rng: random.Random, model: str) -> Attack:
    header = rng.choice(
        (
            b"X-Big: " + b"a" * rng.choice((8000, 70_000, 10**6)),
            b"X: 1\r\n" * rng.choice((90, 2000)) + b"Y: 1",
            b"X-Null: a\0b",
            b"X-Fold: a\r\n b",
            b"No-Colon",
            b"Space : a",
            b": empty",
            b"X-CR: a\rb",
            b"X-LF: a\nb",
            b"Host: evil.example",
            b"Host: 127.0.0.1",
            b"X-\xff: \xfe",
            b"Cookie: " + b"a=b; " * 1000,
            b"Content-Type: text/plain",
            b"Content-Encoding: gzip",
            b"Expect: 100-continue",
            b"Expect: 200-ok",
            b"Accept: " + b"*/*," * 999,
            b"Range: bytes=0-1,2-3",
            b"Authorization: Bearer " + b"a" * 5000,
            b"Origin: http://evil.example",
            b"X-Session-Id: " + b"s" * 4000,
            b"Connection: Content-Length",
            b"X-Forwarded-For: " + b"1.1.1.1, " * 500,
            b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        )
    )
    body = to_json(valid(rng, model, "/v1/completions"))
    return Attack("header", [post("/v1/completions", body, header + b"\r\n")])


def _smuggling(rng: random.Random, model: str) -> Attack:
    inner = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
    lengths = (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4",
        b"Content-Length: 4\r\nContent-Length: 40",
        b"Content-Length: 4, 40",
        b"Content-Length: -4",
        b"Content-Length: +4",
        b"Content-Length: 0x4",
        b"Content-Length: 4\r\n Transfer-Encoding: chunked",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: ",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        b"Transfer-Encoding:\tchunked",
        b"Transfer-Encoding : chunked",
        b"X: a\nTransfer-Encoding: chunked",
    )
    body = rng.choice(
        (
            b"0\r\n\r\n",
            b"4\r\n{}{}\r\n0\r\n\r\n",
            b"-1\r\n\r\n",
            b"ffffffffffffffff1\r\nab",
            b"4;" + b"x" * 9000,
            b"2\r\n{}\r\n0\r\nX-Trailer: " + b"a" * 9000 + b"\r\n\r\n",
            b"zz\r\n",
            b"2\n{}\n0\n\n",
        )
    )
    head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + rng.choice(lengths) + b"\r\n\r\n"
    return Attack("smuggling", [head + body + inner, 1.0], complete=False)


def _pipelined(rng: random.Random, model: str) -> Attack:
    one = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
    many = one * rng.choice((2, 20, 100))
    return Attack(
        "pipelined",
        [many + rng.choice((b"", post("/v1/completions", b"{}"), b"\r\n" * 50, b"GARBAGE\r\n\r\n")), 0.5],
        complete=False,
    )


def _protocols(rng: random.Random, model: str) -> Attack:
    first = rng.choice(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 9,
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + rng.randbytes(500),
            b"GET /health HTTP/1.1\r\n"
            + HOST
            + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\x85\0\0\0\0hello",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /health HTTP/1.1\r\n\r\n",
            rng.randbytes(rng.randrange(1, 3000)),
            b"\n" * 5000,
            b"SSH-2.0-x\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"\0" * 1000,
            b"GET /health\r\n\r\n",
        )
    )
    return Attack("protocol", [first, 0.5], complete=False)


def _slow(rng: random.Random, model: str) -> Attack:
    whole = post("/v1/completions", to_json(valid(rng, model, "/v1/completions")))
    if rng.random() < 0.5:  # half of it, and then nothing
        return Attack("half-sent", [whole[: rng.randrange(len(whole))], rng.uniform(0.5, 8)], complete=False)
    return Attack("byte by byte", [part for byte in whole for part in (bytes([byte]), 0.01)])


def _unread(rng: random.Random, model: str) -> Attack:
    body = valid(rng, model, "/v1/completions") | {
        "stream": True,
        "max_tokens": rng.choice((2, 30)),
        "ignore_eos": True,
    }
    whole = post("/v1/completions", to_json(body))
    sends: list[bytes | float] = [whole, rng.uniform(0, 2)] if rng.random() < 0.7 else [whole]
    return Attack("unread", sends, reads=rng.choice((0, 0, 100)), complete=False)


_KINDS: dict[str, tuple[int, Callable[[random.Random, str], Attack]]] = {
    "wrong field": (30, _field_of("wrong field", lambda rng: rng.choice(WRONG))),
    "wrong fields": (10, _wrong_fields),
    "huge": (8, _field_of("huge", _huge)),
    "nested": (5, _field_of("nested", _nested)),
    "broken JSON": (8, _broken_json),
    "messages": (8, _messages),
    "template": (6, _template),
    "parameters": (10, _parameters),
    "method": (3, _methods),
    "target": (4, _targets),
    "header": (6, _headers),
    "smuggling": (6, _smuggling),
    "pipelined": (2, _pipelined),
    "protocol": (4, _protocols),
    "slow": (3, _slow),
    "unread": (2, _unread),
}
