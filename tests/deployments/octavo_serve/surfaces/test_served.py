"""A protocol needs only its own folder: one that nothing else knows is served, described, refused in its own form."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Literal

import httpx
import pytest
from pydantic import Field
from typing_extensions import TypedDict

from octavo.errors import EngineDead, OctavoError
from octavo.request import SamplingParams
from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.body import Body, parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.failures import Failure
from octavo_serve.api.jobs import Asked
from octavo_serve.api.operation import Call, Names, Operation, Query
from octavo_serve.api.pieces import Begun, Piece, Whole
from octavo_serve.api.service import Service
from octavo_serve.api.surface import Errors, Framing, Surface, Writer
from octavo_serve.http import app
from octavo_serve.http.app import http_app
from octavo_serve.surfaces.served import OPERATIONS, SURFACES

# ---- a protocol with named events, a usage at the start, no [DONE], and errors of its own ----


class Question(Body):
    text: str
    stream: bool = False


class Told(TypedDict):
    text: str
    cached: int | None


class Event(TypedDict, total=False):
    kind: Literal["start", "more", "stop"]
    cached: int | None
    text: str


class Wrong(TypedDict):
    wrong: str


class Teller(Writer[Told, Event]):
    def begin(self, begun: Begun) -> list[Event]:
        return [{"kind": "start", "cached": begun.cached_tokens if self.tells else None}]

    def piece(self, piece: Piece) -> list[Event]:
        return [{"kind": "more", "text": piece.text}] if piece.text else []

    def end(self) -> list[Event]:
        return [{"kind": "stop"}]

    def whole(self, whole: Whole) -> Told:
        (piece,) = whole.choices()
        return {"text": piece.text, "cached": whole.begun[0].cached_tokens if self.tells else None}


asked_in: list[threading.Thread] = []


def ask(body: Question, limits: Limits) -> Asked:
    asked_in.append(threading.current_thread())
    params = SamplingParams(max_tokens=8)
    return Asked(kind="told", model=None, content=[body.text], param="text", params=params)


def frame(event: Mapping[str, Any], json: bytes) -> bytes:
    return b"event: " + str(event.get("kind", "wrong")).encode() + b"\ndata: " + json + b"\n\n"


def error(failure: Failure) -> Wrong:
    return {"wrong": f"{failure.status}: {failure.message}"}


TELL = Surface(
    path="/tell",
    summary="Tell something",
    body=Question,
    answers=Told,
    events=Event,
    streams=lambda body: body.stream,
    ask=ask,
    writer=lambda body, job, tells: Teller(job, tells),
    errors=Errors(Wrong, error),
    framing=Framing("text/event-stream", frame, b"", lambda event, wrong: {"anyOf": [event, wrong]}),
)


class Which(Query):
    limit: int = 3
    include: Names = Field(default_factory=list)


async def look(service: Service, call: Call) -> Told:
    included = ",".join(call.query.include)
    return {"text": f"{call.path['name']} {call.query.limit} {included} {call.caller.name}", "cached": int(call.tells)}


async def forget(service: Service, call: Call) -> Told:
    return {"text": "", "cached": None}


WRONG = Errors(Wrong, error, {429: 529, 404: 410})
LOOK = Operation(method="GET", path="/tell/{name}", summary="Look", query=Which, answers=Told, run=look, errors=WRONG)
FORGET = Operation(method="DELETE", path="/tell/{name}", summary="Forget", answers=Told, run=forget, errors=WRONG)

Send = Callable[..., httpx.Response]


@pytest.fixture
def access() -> Access:
    return Access()


@pytest.fixture
def send(service: Service, backend: Any, access: Access) -> Send:
    async def run(method: str, path: str, **sent: Any) -> httpx.Response:
        served = http_app(service, backend, access, (*SURFACES, TELL), (*OPERATIONS, LOOK, FORGET))
        transport = httpx.ASGITransport(served, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, **sent)

    return lambda method, path, **sent: asyncio.run(run(method, path, **sent))


def test_its_answer_by_http_and_by_handle(send: Send, service: Service, client: Any) -> None:
    client.cached_tokens = 16
    asked = {"text": "Hello"}
    by_handle = asyncio.run(service.answer(TELL, parse(Question, asked)))
    assert send("POST", "/tell", json=asked).json() == by_handle == {"text": "Paris.", "cached": 16}


def test_its_stream(send: Send, client: Any) -> None:
    answer = send("POST", "/tell", json={"text": "Hello", "stream": True})
    first, *more, last, rest = answer.text.split("\n\n")
    assert first == 'event: start\ndata: {"kind":"start","cached":0}'
    assert [part.partition("\n")[0] for part in more] == ["event: more"] * len(more)
    assert "".join(json.loads(part.partition("data: ")[2])["text"] for part in more) == "Paris."
    assert (last, rest) == ('event: stop\ndata: {"kind":"stop"}', "")


def test_its_errors(send: Send, client: Any, access: Access) -> None:
    wrong = send("POST", "/tell", json={"txt": "Hello"})
    assert (wrong.status_code, list(wrong.json())) == (400, ["wrong"])
    assert send("GET", "/tell").json() == {"wrong": "405: GET /tell: Method Not Allowed"}
    client.error = EngineDead("gone")
    for stream in (False, True):
        lost = send("POST", "/tell", json={"text": "Hello", "stream": stream})
        assert (lost.status_code, lost.json()) == (503, {"wrong": "503: gone"})
    client.error, client.late_error, client.fail_after = None, OctavoError("the token was not a number"), 1
    late = send("POST", "/tell", json={"text": "Hello", "stream": True})
    assert late.text.endswith('event: wrong\ndata: {"wrong":"500: the token was not a number"}\n\n')
    access.rules = Rules(Keys([KnownKey(Caller("alice"), sha256(b"sk").digest())]))
    assert send("POST", "/tell", json={"text": "Hello"}).json()["wrong"].startswith("401: an API key is needed")
    assert "error" in send("POST", "/v1/completions", json={"prompt": "Hello"}).json()


def test_what_a_long_body_asks_for_is_found_out_beside_the_loop(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LARGE_BODY", 100)
    asked_in.clear()
    for text in ("Hello", "Hello" * 20):
        assert send("POST", "/tell", json={"text": text}).status_code == 200
    assert [thread is threading.main_thread() for thread in asked_in] == [True, False]


def test_its_description(send: Send) -> None:
    described = send("GET", "/openapi.json").json()
    responses = described["paths"]["/tell"]["post"]["responses"]
    assert {"Question", "Told", "Event", "Wrong"} <= described["components"]["schemas"].keys()
    assert responses["429"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Wrong"}
    assert responses["200"]["content"].keys() == {"application/json", "text/event-stream"}


def test_its_operations(send: Send, access: Access) -> None:
    asked = send("GET", "/tell/this", params={"limit": "7", "include[]": ["a", "b"]})
    assert asked.json() == {"text": "this 7 a,b ", "cached": 1}
    assert send("DELETE", "/tell/this?beta=true").json() == {"text": "", "cached": None}
    wrong = send("GET", "/tell/this", params={"limt": "7"})
    assert (wrong.status_code, wrong.json()) == (
        400,
        {"wrong": "400: unknown query parameter 'limt': did you mean 'limit'?"},
    )
    assert send("GET", "/tell/" + "x" * 513).status_code == 400
    assert (send("POST", "/tell/this").status_code, list(send("POST", "/tell/this").json())) == (405, ["wrong"])
    access.rules = Rules(Keys([KnownKey(Caller("alice"), sha256(b"sk").digest())]), disclose=False)
    assert list(send("GET", "/tell/this").json()) == ["wrong"]
    answer = send("GET", "/tell/this", headers={"x-api-key": "sk"})
    assert answer.json() == {"text": "this 3  alice", "cached": 0}


def test_its_operations_are_described(send: Send) -> None:
    described = send("GET", "/openapi.json").json()["paths"]["/tell/{name}"]
    parameters = {(one["name"], one["in"], one["required"]) for one in described["get"]["parameters"]}
    assert parameters == {("name", "path", True), ("limit", "query", False), ("include", "query", False)}
    assert {"410", "529", "429"} <= described["delete"]["responses"].keys()  # the last is a quota's
    assert "404" not in described["delete"]["responses"]
