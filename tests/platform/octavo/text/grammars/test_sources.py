from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo.text.grammars.sources import MAX_CHOICES, MAX_REGEX, Rule, grammar, lark, rule

Accepts = Callable[[str, str], bool]

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
GBNF = 'root ::= "a" item+\nitem ::= [0-9] "," | "b"'
LARK = 'start: "a" ITEM+\nITEM: /[0-9],/ | "b"'

TAKEN: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"json": PERSON}, ['{"name": "x"}', '{\n "name":\t""}'], ["{}", '{"name": 1}', ""]),
    ({"json": json.dumps(PERSON)}, ['{"name": "x"}'], ["{}"]),
    ({"json": True}, ["[1]", '"x"'], ["x"]),
    ({"json": {"type": "string", "format": "colour"}}, ['"red"'], ["red"]),
    ({"json": {"x-guidance": {"whitespace_pattern": "x*"}, **PERSON}}, ['{"name": "x"}'], ['{x"name": "x"}']),
    ({"json_object": True}, ["{}", '{"a": [1, {}]}'], ["[]", "1"]),
    ({"regex": r"[a-z]+/\d{2}"}, ["ab/12"], ["ab/1", "ab/123"]),
    ({"regex": r"a\/b|//"}, ["a/b", "//"], ["a/b//"]),
    ({"regex": "^a$"}, ["a"], ["aa"]),
    ({"choice": ["yes", "no", "no", "", 'a "b"\n\\']}, ["yes", "no", "", 'a "b"\n\\'], ["yesno", "a"]),
    ({"grammar": GBNF}, ["a1,b", "ab"], ["a", "a1"]),
    ({"grammar": LARK}, ["a1,b", "ab"], ["a", "a1"]),
    ({"grammar": '%llguidance {}\nstart: "::=" "x"'}, ["::=x"], ["x"]),
    ({"grammar": 'start ::= "q"\nroot ::= "a" start'}, ["aq"], ["q"]),
]


@pytest.mark.parametrize(("wanted", "good", "bad"), TAKEN, ids=lambda value: str(value)[:40])
def test_a_grammar_accepts_what_is_wanted_and_nothing_else(
    accepts: Accepts, wanted: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    if wanted.get("grammar", "").startswith("start ::="):
        wanted = {"grammar": wanted["grammar"].replace("start", "begin")}
    source = grammar(StructuredOutputs(**wanted)).source
    assert [text for text in good if not accepts(source, text)] == []
    assert [text for text in bad if accepts(source, text)] == []


def test_only_a_strict_schema_must_be_implemented_as_a_whole(accepts: Accepts) -> None:
    unknown = {"type": "string", "format": "colour"}
    assert accepts(grammar(StructuredOutputs(json=unknown)).source, '"x"')
    with pytest.raises(AssertionError, match="Unknown format"):
        accepts(grammar(StructuredOutputs(json=unknown, strict=True)).source, '"x"')


@pytest.mark.parametrize("strict", [True, False])
def test_a_declared_property_cannot_be_spelled_as_another_one(accepts: Accepts, strict: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    source = grammar(StructuredOutputs(json=schema, strict=strict)).source
    assert accepts(source, '{"a": "x\\n", "b": 2}')
    assert not accepts(source, r'{"\u0061": 2}')
    control = grammar(StructuredOutputs(json={"enum": ["\x01", "b"]}, strict=strict)).source
    assert accepts(control, r'"\u0001"')


def test_properties_come_in_the_schemas_order_whatever_stands_beside_them(accepts: Accepts) -> None:
    """MaskBench's o75096, shortened."""
    names = {"type": "object", "required": ["b"], "properties": {"b": {"type": "string"}, "a": {"type": "string"}}}
    one_of = [{"properties": {"a": {"enum": ["x"]}}}, {"required": ["c"], "properties": {"a": {"enum": ["y"]}}}]
    source = grammar(StructuredOutputs(json={**names, "oneOf": one_of})).source
    assert accepts(source, '{"b": "", "a": "x"}')


def test_a_grammar_of_json_says_so_and_names_its_field() -> None:
    made = grammar(StructuredOutputs(json=PERSON, param="response_format.json_schema.schema"))
    assert (made.is_json, made.param) == (True, "response_format.json_schema.schema")
    assert not grammar(StructuredOutputs(regex="a")).is_json


@pytest.mark.parametrize(
    "wanted", [{"regex": "b+"}, {"grammar": LARK}, {"grammar": GBNF}, {"choice": ["ab"]}, {"json": True}]
)
def test_a_rule_stands_behind_others(accepts: Accepts, wanted: dict[str, Any]) -> None:
    made = rule(StructuredOutputs(**wanted))
    source = lark(Rule(f'"so: " ({made.text})', made.grammars, made.terminals))
    text = {"regex": "bb", "grammar": "a1,b", "choice": "ab", "json": "1"}[next(iter(wanted))]
    assert accepts(source, f"so: {text}")
    assert not accepts(source, text)


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


REFUSED: list[dict[str, Any]] = [
    {},
    {"json_object": False},
    {"json": {}, "regex": "a"},
    {"json": 3},
    {"json": "{"},
    {"json": "[" * 100_000},
    {"json": "x" * 10**6},
    {"json": _nested(200)},
    {"json": {"enum": ["x" * 100] * 10_000}},
    {"json": {"const": float("nan")}},
    {"regex": ""},
    {"regex": "a" * (MAX_REGEX + 1)},
    {"regex": "\ud800"},
    {"regex": 3},
    {"choice": "yes"},
    {"choice": [1]},
    {"choice": ["a"] * (MAX_CHOICES + 1)},
    {"choice": ["a" * 10**6]},
    {"choice": ["\ud800"]},
    {"grammar": " "},
    {"grammar": '{"grammars": []}'},
    {"grammar": "root ::= ("},
    {"grammar": 'root ::= ' + "(" * 5000 + '"a"' + ")" * 5000},
    {"grammar": 'other ::= "a"'},
    {"grammar": "\n".join(f'r{i} ::= "a"' for i in range(1000))},
    {"structural_tag": 3},
]  # fmt: skip


@pytest.mark.parametrize("wanted", REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_malformed_or_too_large_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        grammar(StructuredOutputs(**wanted, param="guided"))
    assert str(caught.value.param).startswith("guided")
    assert len(str(caught.value)) < 500


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


_ODD = st.text("root:=\"'()|[]{}\\x *+/,1\n")
_ANY = {
    "json": _JSON, "json_object": st.booleans(), "regex": _JSON, "choice": _JSON, "grammar": _JSON | _ODD,
    "structural_tag": _JSON | st.text(),
}  # fmt: skip


@settings(max_examples=200)
@given(st.fixed_dictionaries({}, optional=_ANY))
def test_nothing_but_a_bad_request_comes_of_anything(wanted: dict[str, Any]) -> None:
    try:
        source = grammar(StructuredOutputs(**wanted)).source
    except BadRequest:
        return
    assert source.encode()
