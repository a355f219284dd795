"""What a grammar of calls accepts is read as calls whose arguments their schemas allow, in every family's form."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import BadRequest
from octavo.text.grammars.calls import CallableTool
from octavo.text.grammars.sources import lark
from octavo.text.responses.families import NAMES

Tools = list[dict[str, Any]]
Models = Callable[[str, bool], Any]


def check(calls: list[tuple[str, Any]], tools: Tools) -> None:
    for called, arguments in calls:
        jsonschema.validate(arguments, next(tool["parameters"] for tool in tools if tool["name"] == called))


TAGS = {"deepseek_dsml", "glm", "kimi_k3"}
"""Families whose tags are tokens: if they were spelled, a JSON string in them could spell their end."""


@pytest.mark.parametrize(
    ("name", "tokens"), [(name, tokens) for name in NAMES for tokens in (True, False) if tokens or name not in TAGS]
)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_what_the_grammar_accepts_is_read_as_calls(
    model: Models, tools: Tools, callable_tools: list[CallableTool], name: str, tokens: bool, seed: int
) -> None:
    many, family = bool(seed % 2), model(name, tokens)
    text = family.sample(lark(family.calls.calls(callable_tools, many=many)), random.Random(seed))
    if text is None:
        return
    calls, content = family.read(text, tools)
    assert calls, text
    assert content.strip() == "", text
    assert many or len(calls) == 1
    check(calls, tools)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_what_follows_a_call_s_beginning_completes_it(
    model: Models, tools: Tools, callable_tools: list[CallableTool], name: str, seed: int
) -> None:
    family = model(name, True)
    begun = family.calls.begun(callable_tools, many=bool(seed % 2))
    if begun is None:
        assert name == "llama3_json"  # whose calls are JSON, as answers may be
        return
    tokens, texts, rule = begun
    trigger = texts[0] if texts else next(text for text, i in family.template_ids.items() if i == tokens[0])
    rest = family.sample(lark(rule), random.Random(seed))
    if rest is None:
        return
    form = family.calls.written
    assert form is not None
    whole = form.begin + form.open
    calls, content = family.read(whole[: whole.index(trigger)] + trigger + rest, tools)
    assert calls, rest
    assert content.strip() == ""
    check(calls, tools)


def test_a_template_that_tells_how_calls_are_written_needs_no_more(
    own_model: Any, tools: Tools, callable_tools: list[CallableTool]
) -> None:
    spec = {
        "fields": {
            "tool_calls": {
                "open_pattern": r"<call>\s*(?P<name>\w+)\(", "close": ")</call>", "repeats": True, "content": "json",
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {},
        }
    }  # fmt: skip
    own = own_model(spec, tokens=True)
    made = lark(own.calls.calls(callable_tools, many=False))
    assert own.accepts(made, "<call>now({})</call>")
    assert own.read("<call>now({})</call>", tools)[0] == [("now", {})]
    assert not own.accepts(made, "<call>later({})</call>")


def test_a_template_that_does_not_tell_refuses_to_force_a_call(
    own_model: Any, callable_tools: list[CallableTool]
) -> None:
    spec = {"fields": {"tool_calls": {"open_pattern": r"<call \d+>", "content": "json"}, "content": {}}}
    own = own_model(spec, tokens=False)
    with pytest.raises(BadRequest, match="is not known here"):
        own.calls.calls(callable_tools, many=True)
    assert own.calls.begun(callable_tools, many=True) is None


@pytest.mark.parametrize("name", ["gemma", "qwen3_xml"])
def test_a_strict_tool_is_refused_what_its_form_cannot_keep(model: Models, name: str) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "string", "format": "date"}}}
    for strict in (False, True):
        tool = CallableTool(name="f", parameters=odd, strict=strict, param="tools.0.function.parameters")
        if not strict:
            assert model(name, True).calls.calls([tool], many=False)
            continue
        with pytest.raises(BadRequest, match="'format' cannot be kept to") as caught:
            model(name, True).calls.calls([tool], many=False)
        assert caught.value.param == "tools.0.function.parameters"


@pytest.mark.parametrize("kind", ["array", "string", ["string", "null"], 5, None])
def test_arguments_are_an_object(model: Models, kind: Any) -> None:
    """Of an array no call could be read: what the model says would come as text, with `required`, too."""
    hermes = model("hermes", True)
    odd = CallableTool(name="f", parameters={"type": kind}, param="tools.0.function.parameters")
    with pytest.raises(BadRequest, match=r"^tools\.0\..*: .* type must be an object, got") as caught:
        hermes.calls.calls([odd], many=False)
    assert caught.value.param == "tools.0.function.parameters"


@pytest.mark.parametrize("schema", [{"type": ["object", "null"]}, {"anyOf": [{"type": "null"}, {"type": "object"}]}])
def test_of_what_a_schema_allows_only_objects_are_arguments(model: Models, schema: Any) -> None:
    hermes = model("hermes", True)
    source = lark(hermes.calls.calls([CallableTool(name="f", parameters=schema)], many=False))
    said = '<tool_call>\n{{"name": "f", "arguments": {}}}\n</tool_call>'
    assert hermes.accepts(source, said.format("{}"))
    assert not hermes.accepts(source, said.format("null"))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"deepseek_dsml"}))
def test_the_input_of_a_custom_tool_keeps_to_its_grammar(model: Models, name: str) -> None:
    grammar = 'start: line+\nline: "+" /(.*)/ LF\n%import common.LF\n'
    tool = CallableTool(name="run", input_grammar=grammar, strict=True)
    family = model(name, True)
    source = lark(family.calls.calls([tool], many=False))
    tools = [{"name": "run", "parameters": {"type": "object", "properties": {"input": {"type": "string"}}}}]
    for seed in range(4):
        text = family.sample(source, random.Random(seed))
        if text is not None:
            ((called, arguments),), _ = family.read(text, tools)
            assert called == "run"
            assert all(line.startswith("+") for line in arguments["input"].removesuffix("\n").split("\n"))
            break
    else:
        pytest.fail("no text ended")


@pytest.mark.parametrize(("grammar", "bound"), [('start: "+" /.*/', True), ('start: "+" /[^+]+/', False)])
def test_in_a_tag_that_is_spelled_a_grammar_that_goes_on_over_its_end_binds_nothing(
    model: Models, grammar: str, bound: bool
) -> None:
    given = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    tool = CallableTool(name="run", parameters=given, input_grammar=grammar, strict=True)
    family = model("qwen3_xml", True)
    source = lark(family.calls.calls([tool], many=False))
    call = "<tool_call>\n<function=run>\n<parameter=input>\n{}\n</parameter>\n</function>\n</tool_call>"
    assert family.accepts(source, call.format("+a"))
    assert family.accepts(source, call.format("a")) is not bound
