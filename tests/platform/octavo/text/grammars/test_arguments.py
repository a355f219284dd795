from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo.text.grammars.arguments import PYTHON, Arguments, Style
from octavo.text.grammars.sources import Rule, lark

GEMMA = Style('"$"', {}, True, ",", ":")

WRITTEN: list[tuple[Any, Style, list[str], list[str]]] = [
    ({"type": "string"}, PYTHON, ['"a \\"b"'], ["a", "'a'"]),
    ({"type": ["boolean", "null"]}, PYTHON, ["True", "False", "None"], ["true", "null"]),
    ({"enum": ["a", 1, [True, {"k": None}]]}, PYTHON, ['"a"', "1", '[True, {"k": None}]'], ["2", "[True]"]),
    ({"type": "integer", "minimum": 3}, PYTHON, ["3", "10"], ["2", "3.5"]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, PYTHON, ["[1, 2]"], ["[1]", "[]"]),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, PYTHON, ["[]"], ["[1]"]),
    (
        {"type": "object", "properties": {"a": {}, "b": {"type": "integer"}, "c": {}}, "required": ["b"]},
        PYTHON,
        ['{"b": 1}', '{"a": [None, {"x": 1.5}], "b": 1}', '{"b": 1, "c": "z"}'],
        ["{}", '{"b": 1, }', '{"c": 1, "b": 1}'],
    ),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, PYTHON, ['{"a": 1, "b": 2}'], ['{"a": "x"}']),
    ({"type": "object", "additionalProperties": False}, PYTHON, ["{}"], ['{"a": 1}']),
    (
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 2}, "b": {"type": "boolean"}}},
        GEMMA,
        ["{}", "{a:$xy$,b:true}", "{b:false}"],
        ["{a:$xyz$}", '{"a":$x$}', "{a: $x$}"],
    ),
    ({"type": "string", "pattern": "^a/b+$"}, GEMMA, ["$a/bb$"], ["$xa/b$", "$a/bx$"]),
    ({"type": "string", "pattern": "b"}, GEMMA, ["$abc$"], ["$ac$"]),
    ({"const": "x"}, GEMMA, ["$x$"], ["$y$"]),
    ({}, GEMMA, ["{a:[$x$,1]}", "null"], ["None"]),
    ({"$ref": "#/$defs/t"}, GEMMA, ["{n:{n:{}}}"], ["{m:1}"]),
]  # fmt: skip
DEFINITIONS = {"$defs": {"t": {"type": "object", "properties": {"n": {"$ref": "#/$defs/t"}}}}}


@pytest.mark.parametrize(("schema", "style", "good", "bad"), WRITTEN, ids=lambda value: str(value)[:50])
def test_values_are_what_their_schema_allows(
    accepts: Callable[[str, str], bool], schema: Any, style: Style, good: list[str], bad: list[str]
) -> None:
    writer = Arguments("t", DEFINITIONS, "tools", style=style)
    name = writer.value(schema)
    source = lark(Rule(name, terminals="".join(writer.rules)))
    assert [text for text in good if not accepts(source, text)] == []
    assert [text for text in bad if accepts(source, text)] == []


def test_deep_schemas_end_in_values_of_any_kind(accepts: Callable[[str, str], bool]) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(60):
        schema = {"type": "array", "items": schema}
    writer = Arguments("t", {}, "tools")
    name = writer.value(schema)
    source = lark(Rule(name, terminals="".join(writer.rules)))
    assert accepts(source, "[" * 30 + "]" * 30)


def test_what_is_too_much_is_refused() -> None:
    with pytest.raises(BadRequest, match="at most 1024 items"):
        Arguments("t", {}, "tools").value({"type": "array", "minItems": 10**9})
    with pytest.raises(BadRequest, match="'uniqueItems' cannot be kept to"):
        Arguments("t", {}, "tools", strict=True).value({"type": "array", "uniqueItems": True})
