"""What is stored, who finds it, and how a response goes on from another one."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_serve.api.model import Defaults
from octavo_serve.surfaces.responses import recalling

LOOK_UP = {"type": "function", "name": "look_up", "parameters": {"properties": {"a": {"type": "integer"}}}}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"a": 1}}\n</tool_call>'


def prompt(client: Any) -> str:
    """The last request's prompt."""
    return str(client.tokenizer.decode(client.opened[-1].prompt_token_ids, skip_special_tokens=False))


def test_a_response_goes_on_from_another(api: Any, client: Any) -> None:
    first = api.create("What is the capital of France?", instructions="Be short.")
    client.texts = ["Rome."]
    second = api.create("And of Italy?", previous_response_id=first["id"])
    text = prompt(client)
    assert "Be short." not in text, "instructions are those of one request"
    assert text.index("capital of France?") < text.index("Paris.") < text.index("And of Italy?")
    assert second["previous_response_id"] == first["id"]
    api.create("Thanks", previous_response_id=second["id"], instructions="Be long.")
    text = prompt(client)
    assert text.index("Be long.") < text.index("Paris.") < text.index("Rome.") < text.index("Thanks")


def test_what_a_call_returned_goes_back_alone(api: Any, client: Any) -> None:
    client.texts = [CALL]
    first = api.create(tools=[LOOK_UP])
    (call,) = first["output"]
    client.texts = ["It is 2."]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "two"}
    api.create([result], tools=[LOOK_UP], previous_response_id=first["id"])
    assert '{"name": "look_up", "arguments": {"a": 1}}' in prompt(client)
    assert "<tool_response>\ntwo\n</tool_response>" in prompt(client)


def test_the_prompt_goes_on_from_the_very_tokens(api: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the answer's text would be cut into other tokens than the model wrote."""
    tokenizer = client.tokenizer
    written = [tokenizer.encode(character, add_special_tokens=False)[0] for character in "Paris."]
    assert tokenizer.encode("Paris.", add_special_tokens=False) != written
    monkeypatch.setattr(client, "_tokens", lambda index, request: list(written))
    first = api.create("Where is the Louvre?")
    asked = client.opened[-1].prompt_token_ids
    second = api.create("And the Prado?", previous_response_id=first["id"])
    now = client.opened[-1].prompt_token_ids
    assert now[: len(asked) + len(written)] == asked + written
    api.create("And the Uffizi?", previous_response_id=second["id"])
    third = client.opened[-1].prompt_token_ids
    assert third[: len(now) + len(written)] == now + written
    assert prompt(client).count("Paris.") == 2


def test_a_prompt_that_says_something_else_is_cut_as_usual(api: Any, client: Any) -> None:
    first = api.create("Hello", instructions="Be short.")
    api.create("Again", previous_response_id=first["id"], instructions="Be long.")
    tokenizer = client.tokenizer
    assert client.opened[-1].prompt_token_ids == tokenizer.encode(prompt(client), add_special_tokens=False)


def test_nothing_is_kept_where_nothing_shall_be(api: Any, service: Any) -> None:
    first = api.create(store=False)
    message, param = api.refused(previous_response_id=first["id"])
    assert (first["store"], param) == (False, "previous_response_id")
    assert message.startswith("previous_response_id: there is no response")
    assert (opened := service.records._database._opened) is not None
    assert opened[1].execute("SELECT count(*) FROM records").fetchone() == (0,)


@pytest.mark.usefixtures("two_callers")
def test_a_response_is_its_callers_alone(api: Any) -> None:
    first = api.create(key="sk-alice")
    assert api.create("Again", key="sk-alice", previous_response_id=first["id"])["status"] == "completed"
    body = {"input": "Again", "previous_response_id": first["id"]}
    assert api.send("POST", "/v1/responses", "sk-bob", json=body).status_code == 400
    reference = {"input": [{"type": "item_reference", "id": first["output"][0]["id"]}]}
    assert api.send("POST", "/v1/responses", "sk-alice", json=reference).status_code == 200
    assert api.send("POST", "/v1/responses", "sk-bob", json=reference).status_code == 400


def test_an_item_is_referred_to(api: Any, client: Any) -> None:
    first = api.create()
    item = {"type": "item_reference", "id": first["output"][0]["id"]}
    api.create([{"role": "user", "content": "Hello"}, item, {"role": "user", "content": "Again"}])
    assert prompt(client).index("Hello") < prompt(client).index("Paris.") < prompt(client).index("Again")
    for wrong in ("msg_0_0", "x", item["id"] + "1"):
        assert "which is not kept here" in api.refused([{"type": "item_reference", "id": wrong}])[0]


def test_references_are_bounded(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"type": "item_reference", "id": api.create()["output"][0]["id"]} for _ in range(2)]
    monkeypatch.setattr(recalling, "MAX_CHAIN", 1)
    assert "too many responses" in api.refused(items)[0]
    api.create([items[0], items[0]])


def test_sealed_reasoning_goes_back_to_the_template(api: Any, client: Any, service: Any) -> None:
    service.models.find(None).defaults = Defaults(response_template="glm")
    client.texts = ["<think>Hm.</think>\nYes."]
    asked = {"include": ["reasoning.encrypted_content"], "store": False}
    output = api.create(**asked)["output"]
    assert output[0]["encrypted_content"]
    streamed = api.stream(**asked)[-1]["response"]["output"]
    assert streamed[0]["encrypted_content"] == output[0]["encrypted_content"]
    again = [{"role": "user", "content": "Hello"}, *output, {"role": "user", "content": "Sure?"}]
    assert api.create(again)["status"] == "completed"
    output[0]["encrypted_content"] = output[0]["encrypted_content"][:-4] + "AAAA"
    assert "did not make for this caller" in api.refused(again)[0]
