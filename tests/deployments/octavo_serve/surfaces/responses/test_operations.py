"""Stored responses: fetched, listed, deleted, counted; by their caller alone."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import ResponseItemList
from openai.types.responses.input_token_count_response import InputTokenCountResponse

LOOK_UP = {"type": "function", "name": "look_up", "parameters": {"properties": {"a": {"type": "integer"}}}}


def test_a_response_is_fetched_and_deleted(api: Any) -> None:
    first = api.create(metadata={"a": "b"})
    path = f"/v1/responses/{first['id']}"
    assert api.send("GET", path).json() == first
    assert api.send("DELETE", path).json() == {"id": first["id"], "object": "response", "deleted": True}
    for method, where in (("GET", path), ("DELETE", path), ("GET", path + "/input_items"), ("POST", path + "/cancel")):
        gone = api.send(method, where)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


def test_a_streamed_response_is_stored_before_its_last_event(api: Any) -> None:
    last = api.stream()[-1]["response"]
    assert api.send("GET", f"/v1/responses/{last['id']}").json() == last


@pytest.mark.usefixtures("two_callers")
def test_nobody_elses(api: Any) -> None:
    path = f"/v1/responses/{api.create(key='sk-alice')['id']}"
    for method, where in (("GET", path), ("DELETE", path), ("GET", path + "/input_items"), ("POST", path + "/cancel")):
        assert api.send(method, where, "sk-bob").status_code == 404
    assert api.send("GET", path, "sk-alice").status_code == 200
    assert api.send("GET", path).status_code == 401


def test_input_items_are_listed(api: Any) -> None:
    first = api.create([{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}])
    second = api.create("Three", previous_response_id=first["id"])
    path = f"/v1/responses/{second['id']}/input_items"
    found = api.send("GET", path, params={"order": "asc"}).json()
    ResponseItemList.model_validate(found, strict=True)
    assert [item["content"][0]["text"] for item in found["data"]] == ["One", "Two", "Paris.", "Three"]
    assert api.send("GET", path).json()["data"] == found["data"][::-1]
    page, seen = api.send("GET", path, params={"limit": "3"}).json(), []
    seen += page["data"]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, seen[0]["id"], seen[2]["id"])
    page = api.send("GET", path, params={"limit": "3", "after": page["last_id"]}).json()
    assert (page["has_more"], [*seen, *page["data"]]) == (False, found["data"][::-1])


@pytest.mark.parametrize(
    ("path", "params", "param"),
    [
        ("/input_items", {"limit": "0"}, "limit"),
        ("/input_items", {"limit": "101"}, "limit"),
        ("/input_items", {"order": "up"}, "order"),
        ("/input_items", {"after": "msg_1"}, "after"),
        ("/input_items", {"before": "msg_1"}, "before"),
        ("", {"starting_after": "1"}, "starting_after"),
        ("", {"stream": "true"}, "stream"),
        ("", {"include_obfuscation": "true"}, "include_obfuscation"),
    ],
)
def test_wrong_parameters_are_refused(api: Any, path: str, params: dict[str, str], param: str) -> None:
    answer = api.send("GET", f"/v1/responses/{api.create()['id']}{path}", params=params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_what_does_not_run_in_the_background_cannot_be_cancelled(api: Any) -> None:
    answer = api.send("POST", f"/v1/responses/{api.create()['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_id")


def test_tokens_are_counted_as_they_are_served(api: Any) -> None:
    body: dict[str, Any] = {"input": "Hello", "instructions": "Be short.", "tools": [LOOK_UP]}
    answer = api.send("POST", "/v1/responses/input_tokens", json=body)
    InputTokenCountResponse.model_validate(answer.json(), strict=True)
    first = api.create(body.pop("input"), **body)
    assert answer.json()["input_tokens"] == first["usage"]["input_tokens"]
    body = {"input": "Again", "previous_response_id": first["id"], "tools": [LOOK_UP], "instructions": "Be short."}
    counted = api.send("POST", "/v1/responses/input_tokens", json=body).json()["input_tokens"]
    assert counted == api.create(body.pop("input"), **body)["usage"]["input_tokens"]
