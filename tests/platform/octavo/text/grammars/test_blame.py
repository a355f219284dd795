from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from octavo.constraint import MAX_GRAMMAR, Grammar, StructuredOutputs
from octavo.errors import BadRequest
from octavo.text.grammars import blame, sources
from octavo.text.grammars.blame import blamed
from octavo.text.grammars.compiler import Compiler
from octavo.text.grammars.tokens import Vocabulary

BAD = {"type": "string", "pattern": "(?=a)b"}
NONE = {"type": "integer", "minimum": 5, "maximum": 3}


@pytest.fixture(scope="module")
def compiler(byte_level):
    return Compiler(Vocabulary(byte_level, byte_level.vocab_size))


def of(properties: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


WIDE = {f"p{i}": {"type": "string"} for i in range(300)}
CASES: list[tuple[Any, str]] = [
    ({"type": "strin"}, "type"),
    (of(3), "properties"),
    (of({"a": {"type": 3}}), "properties.a.type"),
    (of({"a": None}), "properties.a"),
    (of({"address": {"type": "array", "items": BAD}}), "properties.address.items.pattern"),
    (of({**WIDE, "z": of({"y": {"anyOf": [{"type": "null"}, BAD]}})}), "properties.z.properties.y.anyOf.1.pattern"),
    (of({"été": {"prefixItems": [{}, {"enum": 3}]}}), "properties.été.prefixItems.1.enum"),
    (of({"a": {"additionalProperties": {"minLength": "x"}}}), "properties.a.additionalProperties.minLength"),
    ({"patternProperties": {"(": {}}}, "patternProperties"),
    (of({"a": {"$ref": "#/$defs/none"}}), "properties.a.$ref"),
    (of({"a": {"$ref": "https://example.invalid/s"}}), "properties.a.$ref"),
    (of({"a": {"$ref": "#/$defs/b~1c"}}, **{"$defs": {"b/c": of({"d": BAD})}}), "$defs.b/c.properties.d.pattern"),
    (
        of({"a": {"$ref": "#/$defs/one"}, "b": {}}, **{"$defs": {"one": {"$ref": "#/$defs/two"}, "two": BAD}}),
        "$defs.two.pattern",
    ),
    (of({"tree": {"type": "array", "items": {"$ref": "#"}}, "leaf": BAD}), "properties.leaf.pattern"),
    (of({"a": NONE}, required=["a"]), "properties.a"),
    (of({"b": of({"a": NONE}, required=["a"])}, required=["b"]), "properties.b.properties.a"),
    (of({"a": {"allOf": [{"type": "integer"}, {"type": "string"}]}}, required=["a"]), "properties.a.allOf"),
    (of({"a": {"not": {"const": 1}}, "b": {}}), "properties.a.not"),
    (of({"a": {"type": "string", "format": "colour"}}), "properties.a.format"),
    (of({"a": {"type": "string", "pattern": "x" * 5000}}), "properties.a.pattern"),
    (of({"a": BAD, "b": BAD}), "properties.b.pattern"),  # of several, one
]


@pytest.mark.parametrize(("schema", "path"), CASES, ids=[path for _, path in CASES])
def test_an_error_names_the_path_inside_the_schema(compiler, schema, path):
    wanted = StructuredOutputs(json=schema, strict=True, param="response_format.json_schema.schema")
    with pytest.raises(BadRequest) as raised:
        compiler.compile(sources.grammar(wanted))
    assert raised.value.param == f"response_format.json_schema.schema.{path}"
    assert str(raised.value).startswith(raised.value.param)


def test_an_expressions_error_is_told_whole(compiler):
    with pytest.raises(BadRequest) as raised:
        compiler.compile(sources.grammar(StructuredOutputs(json=of({"a": BAD}), param="guided_json")))
    assert str(raised.value) == (
        "guided_json.properties.a.pattern: failed to compile JSON schema: regex parse error: (?=a)b "
        "error: look-around, including look-ahead and look-behind, is not supported"
    )


def test_a_schema_that_allows_nothing_is_refused_as_a_whole():
    with pytest.raises(BadRequest, match="is false") as raised:
        sources.grammar(StructuredOutputs(json=False, param="guided_json"))
    assert raised.value.param == "guided_json"


@pytest.mark.parametrize(
    "source", ["start: foo(", f"start: /{'a' * 5000}/", 'start: %json {"type": "string"} foo', "start: %json 3"]
)
def test_what_is_of_no_part_keeps_its_field(compiler, source):
    with pytest.raises(BadRequest) as raised:
        compiler.compile(Grammar(source=source, param="grammar"))
    assert raised.value.param == "grammar"


def test_a_schema_in_a_clients_own_grammar_is_looked_at_too(compiler):
    source = f'start: "a" %json {json.dumps(of({}))} %json {json.dumps(of({"a": BAD}))}'
    with pytest.raises(BadRequest) as raised:
        compiler.compile(Grammar(source=source, param="grammar"))
    assert raised.value.param == "grammar.properties.a.pattern"


def test_a_search_is_bounded_however_large_and_slow_the_schema_is(monkeypatch):
    monkeypatch.setattr(blame, "SECONDS", 0.02)
    checks = []

    def check(schema: Any) -> None:
        checks.append(begin := time.thread_time())
        while time.thread_time() < begin + 0.005:
            pass
        if '"bad"' in json.dumps(schema):
            raise BadRequest("field: bad", "field")

    wide = {"properties": {"a": of({f"p{i}": {} for i in range(9_000)} | {"z": {"type": "bad"}})}}
    with pytest.raises(BadRequest) as raised:
        check(wide)
    assert blamed(raised.value, wide, check).param == "field.properties.a"  # as far as it came
    assert len(checks) <= 6


def test_no_depth_ends_a_search():
    deep: Any = BAD
    for _ in range(20_000):
        deep = {"items": deep}
    error = BadRequest("field: bad", "field")

    def check(schema: Any) -> None:
        raise error

    assert blamed(error, deep, check) is error


def test_hostile_schemas_that_are_wrong_take_little_time(compiler):
    schema = of({f"p{i}": {"type": "string", "pattern": f"(a|b){{1,{i}}}(?=x)"} for i in range(1, 400)})
    grammar = sources.grammar(StructuredOutputs(json=schema, param="guided_json"))
    assert len(grammar.source) < MAX_GRAMMAR
    begin, seconds = time.process_time(), []
    done = threading.Event()
    compiler.submit(grammar, lambda result: (seconds.append(time.process_time() - begin), done.set()))
    assert done.wait(60)
    assert seconds[0] < 2


def test_a_flood_of_errors_is_not_searched(compiler, monkeypatch):
    """Nobody reads ten a second, and each search takes CPU from streams."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(blame, "_allowance", allowance := blame.Allowance())
    allowance.spend(blame.SAVED + 0.3)
    schema = of({"a": {"type": 3}})

    def path() -> str:
        made = sources.grammar(StructuredOutputs(json=schema | {"title": str(now)}))
        with pytest.raises(BadRequest) as caught:
            compiler.compile(made)
        assert caught.value.param is not None
        return caught.value.param

    assert path() == "structured_outputs"
    now += 0.35 / blame.SHARE
    assert path() == "structured_outputs.properties.a.type"
