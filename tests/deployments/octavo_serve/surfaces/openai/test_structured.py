from __future__ import annotations

from typing import Any

import pytest

from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.openai.structured import structured_outputs

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
NAMED = {"name": "n", "schema": SCHEMA}
Wanted = StructuredOutputs

READ: list[tuple[dict[str, Any], StructuredOutputs | None]] = [
    ({}, None),
    (
        {"response_format": None, "guided_json": None, "structured_outputs": {}, "grammar": "", "guided_choice": []},
        None,
    ),
    ({"response_format": {"type": "text"}, "structured_outputs": {"json_object": False, "regex": None}}, None),
    ({"response_format": {"type": "json_object"}}, Wanted(json_object=True, param="response_format")),
    (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        Wanted(json=SCHEMA, param="response_format.schema"),
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": NAMED}},
        Wanted(json=SCHEMA, param="response_format.json_schema.schema"),
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "strict": True}}},
        Wanted(json=SCHEMA, strict=True, param="response_format.json_schema.schema"),
    ),
    (
        {"response_format": {"type": "structural_tag", "format": {}}},
        Wanted(structural_tag={"type": "structural_tag", "format": {}}, param="response_format"),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, Wanted(json=SCHEMA, param="structured_outputs.json")),
    ({"structured_outputs": {"choice": ["a"]}}, Wanted(choice=["a"], param="structured_outputs.choice")),
    ({"structured_outputs": {"json_object": True}}, Wanted(json_object=True, param="structured_outputs.json_object")),
    ({"guided_json": "{}"}, Wanted(json="{}", param="guided_json")),
    ({"guided_json": {}}, Wanted(json={}, param="guided_json")),
    ({"json_schema": {}}, Wanted(json={}, param="json_schema")),
    ({"guided_regex": "a"}, Wanted(regex="a", param="guided_regex")),
    ({"guided_choice": ["a"]}, Wanted(choice=["a"], param="guided_choice")),
    ({"guided_grammar": "start: A"}, Wanted(grammar="start: A", param="guided_grammar")),
    ({"grammar": "root ::= A"}, Wanted(grammar="root ::= A", param="grammar")),
    ({"json_schema": SCHEMA}, Wanted(json=SCHEMA, param="json_schema")),
]


@pytest.mark.parametrize(("extra", "wanted"), READ, ids=str)
def test_each_field_says_what_the_answer_must_be(extra: dict[str, Any], wanted: StructuredOutputs | None) -> None:
    chat = parse(ChatRequest, {"messages": [{"role": "user", "content": "Hi"}]} | extra)
    for body in (chat, parse(CompletionRequest, {"prompt": "Hi"} | extra)):
        assert structured_outputs(body) == wanted
    if wanted is not None and isinstance(wanted.json, dict) and wanted.json:
        assert list(wanted.json["properties"]) == ["b", "a"]  # an answer has them in this order


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "text", "json_schema": []}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "name": 5}}},
        "response_format.json_schema.name",
    ),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"jsn": SCHEMA}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": 0}}, "structured_outputs.json_object"),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "strict": "yes"}}},
        "response_format.json_schema.strict",
    ),
]


@pytest.mark.parametrize(("extra", "param"), REFUSED, ids=str)
def test_what_is_malformed_is_refused_by_its_field(extra: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        structured_outputs(parse(CompletionRequest, {"prompt": "Hi"} | extra))
    assert caught.value.param == param
