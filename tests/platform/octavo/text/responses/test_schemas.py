from __future__ import annotations

from typing import Any

import pytest

from octavo.text.responses.schemas import choices, fits, resolved

ROOT = {"$defs": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/a", "title": "b"}, "loop": {"$ref": "#/$defs/loop"}}}

KINDS: list[tuple[Any, list[Any]]] = [
    ({"type": "string"}, ["string"]),
    ({"type": ["string", "null"]}, ["string", "null"]),
    ({"$ref": "#/$defs/b"}, ["integer"]),
    ({"$ref": "#/$defs/loop"}, [None]),
    ({"$ref": "#/$defs/none"}, [None]),
    ({"$ref": "https://example.com/schema"}, [None]),
    (
        {"anyOf": [{"$ref": "#/$defs/a"}, {"oneOf": [{"type": "null"}, {"type": "object"}]}]},
        ["integer", "null", "object"],
    ),
    ({"allOf": [{"$ref": "#/$defs/a"}], "description": "d"}, ["integer"]),
    ({"enum": ["a", 1, None, 2.5, True]}, ["string", "integer", "null", "number", "boolean"]),
    ({"const": [1]}, ["array"]),
    ({"properties": {}}, ["object"]),
    ({}, [None]),
    (True, []),
]


@pytest.mark.parametrize(("schema", "kinds"), KINDS, ids=str)
def test_choices_have_one_type_each(schema: Any, kinds: list[Any]) -> None:
    assert [choice.get("type") for choice in choices(schema, ROOT)] == kinds


def test_a_choice_keeps_its_own_values_and_what_stands_beside() -> None:
    assert choices({"type": ["string", "integer"], "enum": ["a", 1]}, {}) == [
        {"type": "string", "enum": ["a"]},
        {"type": "integer", "enum": [1]},
    ]
    assert resolved({"$ref": "#/$defs/b", "minimum": 1}, ROOT) == {"type": "integer", "title": "b", "minimum": 1}
    assert fits(2, "number")
    assert not fits(True, "integer")


def test_schemas_that_lead_to_themselves_end() -> None:
    root = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "null"}]}
    assert len(choices(root, root)) <= 64
