"""Values of forms without types get those of the tool's schema, and keep their text where it fits none."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.text.responses.values import load_json, schema_types, typed


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("3", ["string"], "3"), ("3", ["integer"], 3), ("3.0", ["integer"], 3.0),
        ("3.5", ["integer"], "3.5"),
        ("3.5", ["number"], 3.5), ("3", ["string", "integer"], 3), ("x", ["integer", "string"], "x"),
        ("true", ["boolean"], True),
        ("True", ["boolean"], True), ("FALSE", ["boolean"], False), ("1", ["boolean"], "1"),
        ("true", ["integer"], "true"),
        ("null", ["string", "null"], None),
        ("None", ["null"], None),
        (" [1] ", ["array"], [1]),
        ('{"a": 1}', ["object"], {"a": 1}),
        ("[1]", ["object"], "[1]"), ("nope", ["object"], "nope"), ("02139", ["string"], "02139"),
        ("x", ["unheard"], "x"),
    ],
)  # fmt: skip
def test_a_text_becomes_what_its_schema_says(text: str, types: list[str], value: Any) -> None:
    found = typed(text, types)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, ["integer"]), ({"type": ["string", "null"]}, ["string", "null"]), ({}, []), (None, []),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["string", "null"]), ({"type": 3}, []), ({"anyOf": 3}, []),
    ],
)  # fmt: skip
def test_the_types_of_a_schema(schema: Any, types: list[str]) -> None:
    assert schema_types(schema) == types


def test_json_as_models_write_it() -> None:
    assert load_json('{"a": "two\nlines"}') == {"a": "two\nlines"}
    for text in ("NaN", "-Infinity", "{'a': 1}", "1" * 5000):
        with pytest.raises(ValueError, match=r"."):
            load_json(text)
