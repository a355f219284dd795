from __future__ import annotations

import json

import pytest

from octavo.constraint import Grammar
from octavo.errors import BadRequest
from octavo.text.grammars.cost import check_cost

LONG = "a?" * 3000
TERMINALS = "\n".join(f'T{i}: "x"' for i in range(300))


def of(schema) -> str:
    return json.dumps({"grammars": [{"json_schema": schema}]})


@pytest.mark.parametrize(
    "source",
    [
        f"start: /{LONG}/",
        f"start: r\nr: %json {{}} | /{LONG}/",
        'start: %json {"items": [{"pattern": "' + LONG + '"}]}',
        of({"properties": {"a": {"pattern": LONG}}}),
        of({"anyOf": [{"patternProperties": {LONG: {}}}]}),
        json.dumps({"grammars": [{"lark_grammar": f"start: /{LONG}/"}]}),
    ],
)
def test_long_expressions_are_found_wherever_they_are(source):
    with pytest.raises(BadRequest, match=r"a regular expression of 600\d characters; at most 4096"):
        check_cost(Grammar(source=source))


@pytest.mark.parametrize("source", [TERMINALS, json.dumps({"grammars": [{"lark_grammar": TERMINALS}]})])
def test_terminals_are_counted(source):
    with pytest.raises(BadRequest, match="grammar has 300 terminals"):
        check_cost(Grammar(source=source, param="grammar"))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"k{i}": {"multipleOf": 9973 + i} for i in range(100)}},
        {"allOf": [{"multipleOf": divisor} for divisor in (97, 89, 83)]},
        {"multipleOf": 10**4000 + 1},
    ],
)
def test_divisors_are_counted(schema):
    with pytest.raises(BadRequest, match=r"values of multipleOf that take \d+ states; at most 32768"):
        check_cost(Grammar(source=of(schema)))


@pytest.mark.parametrize(
    "source",
    [
        of({"properties": {f"k{i}": {"multipleOf": divisor} for i, divisor in enumerate((0.01, 1000000, 7, 11, 2.5))}}),
        of({"multipleOf": "a", "items": {"multipleOf": 1e999}, "not": {"multipleOf": -1}}),
        'start: %json {"description": "either/or ' + LONG + ' and/or"}',
        of({"description": f"/{LONG}/", "properties": {"pattern": {"type": "string"}}}),
        "start: %json {broken",
        "{broken",
        "{" * 5000,
        '{"grammars": 5}',
        '{"grammars": [5, {"lark_grammar": 5, "json_schema": 5}]}',
        "",
    ],
)
def test_all_else_is_left_to_the_compiler(source):
    check_cost(Grammar(source=source))


MERGED = {"allOf": [{"pattern": f".*{letter}.*"} for letter in "abcdefghi"]}


@pytest.mark.parametrize(
    ("source", "light"),
    [
        ('start: "a"', True),
        (of({"properties": {f"p{i}": {"pattern": "^a+$"} for i in range(40)}}), True),
        (of({"type": "integer", "multipleOf": 1000}), True),
        ('start: "' + "a" * 2**15 + '"', False),
        (f"start: /{'a?' * 300}/", False),
        ("\n".join(f'T{i}: "x"' for i in range(33)), False),
        (of({"type": "integer", "multipleOf": 1001}), False),
        (of(MERGED), False),
        (of({"allOf": MERGED["allOf"][1:]}), True),
    ],
)
def test_light_ones_are_told_from_others(source, light):
    assert check_cost(Grammar(source=source)).is_light is light
