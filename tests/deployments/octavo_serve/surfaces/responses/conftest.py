"""/v1/responses over a scripted model, by HTTP without sockets; all answers are checked with OpenAI's types."""

from __future__ import annotations

import asyncio
import json
import warnings
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.http.app import http_app

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_BEYOND = {"store", "bytes", "presence_penalty", "frequency_penalty", "status", "name"}
"""What Open Responses has and OpenAI's types have not, or not everywhere."""


def checked(response: dict[str, Any]) -> dict[str, Any]:
    """A response that OpenAI's SDK reads without loss."""
    read = Response.model_validate(response, strict=True)
    _assert_same(response, read)
    return response


def _assert_same(sent: Any, read: Any) -> None:
    """Whatever was sent is a field that the SDK knows, with the value that was sent."""
    if isinstance(read, BaseModel):
        names = {info.alias or name: name for name, info in type(read).model_fields.items()}
        for name, value in sent.items():
            assert name in names or name in _BEYOND, name
            if name in names:
                _assert_same(value, getattr(read, names[name]))
    elif isinstance(sent, list):
        for one, other in zip(sent, read, strict=True):
            _assert_same(one, other)
    elif not isinstance(sent, dict):
        assert sent == read


def events_of(text: str, first: int = 0) -> list[dict[str, Any]]:
    """A stream's events, each checked; the first has this number."""
    *parts, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = []
    for number, part in enumerate(parts, first):
        name, _, data = part.partition("\ndata: ")
        event = json.loads(data)
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        with warnings.catch_warnings(action="error"):
            _assert_same(event, _EVENT.validate_python(event, strict=True))
        events.append(event)
    return events


@dataclass
class Api:
    """Sends requests to one application; all of its state goes on from one to the next."""

    service: Service
    backend: Any
    access: Access = field(default_factory=Access)

    checked = staticmethod(checked)
    events_of = staticmethod(events_of)

    def other(self) -> Api:
        """Another gateway of the same application."""
        service = Service(self.service.models, self.service.limits, Telemetry())
        service.records.settings = self.service.records.settings
        return Api(service, self.backend, self.access)

    def send(self, method: str, path: str, key: str = "", **sent: Any) -> httpx.Response:
        return asyncio.run(self.request(method, path, key, **sent))

    async def request(self, method: str, path: str, key: str = "", **sent: Any) -> httpx.Response:
        app = http_app(self.service, self.backend, self.access)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
            return await http.request(method, path, **sent)

    def create(self, given: Any = "Hello", key: str = "", **body: Any) -> dict[str, Any]:
        """A response to an input."""
        answer = self.send("POST", "/v1/responses", key, json={"input": given} | body)
        assert answer.status_code == 200, answer.text
        return checked(answer.json())

    def stream(self, given: Any = "Hello", **body: Any) -> list[dict[str, Any]]:
        """The events of a response to an input."""
        answer = self.send("POST", "/v1/responses", json={"input": given, "stream": True} | body)
        assert answer.status_code == 200, answer.text
        return events_of(answer.text)

    def refused(self, given: Any = "Hello", **body: Any) -> tuple[str, str | None]:
        """The message and the field of the error that refuses a body."""
        answer = self.send("POST", "/v1/responses", json={"input": given} | body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        return error["message"], error["param"]


@pytest.fixture
def access() -> Access:
    return Access()


@pytest.fixture
def api(service: Service, backend: Any, access: Access) -> Api:
    return Api(service, backend, access)


@pytest.fixture
def two_callers(access: Access) -> None:
    """From now on a request needs the key "sk-alice" or "sk-bob"."""
    keys = [KnownKey(Caller(name), sha256(f"sk-{name}".encode()).digest()) for name in ("alice", "bob")]
    access.rules = Rules(Keys(keys))
