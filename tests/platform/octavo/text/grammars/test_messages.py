"""Messages that think, answer and call, in the forms of families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from octavo.constraint import MAX_GRAMMAR, Grammar, StructuredOutputs
from octavo.errors import BadRequest
from octavo.text.grammars import messages
from octavo.text.grammars.calls import CallableTool
from octavo.text.grammars.messages import MessageGrammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
WANTED = StructuredOutputs(json=SCHEMA, param="response_format.json_schema.schema")
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
PROMPT = "<|im_start|>assistant\n"


Message = Callable[..., tuple[Any, MessageGrammar]]


@pytest.fixture
def message(model: Callable[[str, bool], Any]) -> Message:
    def message(name: str, prompt: str = "", *, tokens: bool = True) -> tuple[Any, MessageGrammar]:
        family = model(name, tokens)
        return family, MessageGrammar(family.template, [family.end], prompt)

    return message


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "spelled"])
def test_an_answer_may_come_behind_thinking(message: Message, tokens: bool) -> None:
    family, made = message("hermes", PROMPT, tokens=tokens)
    grammar = made.answer(WANTED)
    assert (made.state, grammar.after_tokens, grammar.after_texts) == ("may open", (), ())
    assert grammar.is_json
    for text in ('{"a": 1}', '<think>\nHm { "x\n</think>\n\n{"a":2}', '<think></think>{"a": 3}'):
        assert family.accepts(grammar.source, text), text
    for text in ('Hm. {"a": 1}', "<think>\nHm", '<think>Hm</think> So: {"a": 1}', CALL):
        assert not family.accepts(grammar.source, text), text


def test_where_the_prompt_opened_the_thinking_the_grammar_begins_behind_it(message: Message) -> None:
    family, made = message("hermes", PROMPT + "<think>\n")
    grammar = made.answer(WANTED)
    assert made.state == "open"
    assert grammar.after_tokens == (family.template_ids["</think>"],)
    assert family.accepts(grammar.source, '\n\n{"a": 1}')
    assert not family.accepts(grammar.source, 'Hm.</think>{"a": 1}')


def test_where_a_text_closes_the_thinking_the_grammar_holds_it_too(message: Message) -> None:
    family, made = message("hermes", PROMPT + "<think>\n", tokens=False)
    grammar = made.answer(WANTED)
    assert (made.state, grammar.after_tokens, grammar.after_texts) == ("open", (), ())
    assert family.accepts(grammar.source, 'Hm.</think>\n\n{"a": 1}')
    assert not family.accepts(grammar.source, "Hm.</think>.")  # which a token's end may be


def test_thinking_that_the_prompt_closed_does_not_come_again(message: Message) -> None:
    family, made = message("hermes", PROMPT + "<think>\n\n</think>\n\n")
    assert made.state == "closed"
    assert family.accepts(made.answer(WANTED).source, '{"a": 1}')
    assert not family.accepts(made.answer(WANTED).source, '<think></think>{"a": 1}')


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "spelled"])
def test_a_message_is_an_answer_or_calls(message: Message, callable_tools: list[Any], tokens: bool) -> None:
    family, made = message("hermes", PROMPT, tokens=tokens)
    grammar = made.answer(WANTED, callable_tools)
    for text in ('{"a": 1}', CALL, f"<think>Hm</think>\n{CALL}\n{CALL}"):
        assert family.accepts(grammar.source, text), text
    assert not family.accepts(grammar.source, f'{CALL}{{"a": 1}}')
    assert not family.accepts(made.answer(WANTED, callable_tools, many=False).source, f"{CALL}\n{CALL}")


def test_what_could_be_either_is_refused(message: Message, callable_tools: list[Any]) -> None:
    _, made = message("llama3_json")
    with pytest.raises(BadRequest, match="cannot be told from such answers") as caught:
        made.answer(WANTED, callable_tools)
    assert caught.value.param == WANTED.param
    _, made = message("hermes", tokens=False)
    with pytest.raises(BadRequest, match="cannot be told"):
        made.answer(StructuredOutputs(regex=".*"), callable_tools)


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT + "<think>\n"], ids=["may open", "open"])
def test_a_forced_call_comes_behind_thinking(message: Message, callable_tools: list[Any], prompt: str) -> None:
    family, made = message("hermes", prompt)
    grammar = made.forced(callable_tools, many=False)
    opened = "" if made.state == "open" else "<think>"
    assert family.accepts(grammar.source, f"{opened}Hm.</think>\n\n{CALL}")
    assert family.accepts(grammar.source, CALL) == (made.state == "may open")
    assert not family.accepts(grammar.source, f"{opened}Hm.</think>")
    assert grammar.is_json


def test_harmony_s_channels(message: Message, tools: list[Any], callable_tools: list[Any]) -> None:
    family, made = message("gpt_oss", "<|start|>assistant")
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    answer = '<|channel|>final<|message|>{"a": 1}'
    call = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"
    both = made.answer(WANTED, callable_tools).source
    for text in (answer, thought + answer, call, thought + call):
        assert family.accepts(both, text), text
    assert not family.accepts(both, '{"a": 1}')
    forced = made.forced(callable_tools, many=True).source
    assert family.accepts(forced, thought + call)
    assert not family.accepts(forced, thought + answer)
    calls, content = family.read(thought + call, tools)
    assert (calls, content) == ([("now", {})], "Hm.")  # what was thought, and no content


def test_calls_begin_where_their_marker_is(message: Message, callable_tools: list[Any]) -> None:
    family, made = message("hermes", PROMPT)
    grammar = made.begun(callable_tools, many=True)
    assert isinstance(grammar, Grammar)
    assert (grammar.after_tokens, grammar.again) == ((family.template_ids["<tool_call>"],), True)
    assert family.accepts(grammar.source, CALL.removeprefix("<tool_call>"))
    once = made.begun(callable_tools, many=False)
    assert once is not None
    assert not once.again
    assert grammar.is_json  # white space between its parts is bounded, too
    tags = message("qwen3_xml")[1].begun(callable_tools, many=True)
    assert tags is not None
    assert not tags.is_json  # that of a text in tags is its own
    assert message("llama3_json")[1].begun(callable_tools, many=True) is None


def _tools(count: int, size: int, **fields: Any) -> list[CallableTool]:
    return [CallableTool(name=f"f{i}", parameters={"description": "x" * size}, **fields) for i in range(count)]


def test_tools_that_are_too_large_together_are_not_compiled(message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = message("hermes", PROMPT)
    monkeypatch.setattr(messages, "is_sound", lambda source: pytest.fail("compiled"))
    many = _tools(30, MAX_GRAMMAR // 29, param="tools")
    assert made.begun(many, many=True) is None
    with pytest.raises(BadRequest, match=r"^the schemas of the tools have \d+ characters; at most 524288") as caught:
        made.forced(many, many=True)
    assert caught.value.param == "tools"
    with pytest.raises(BadRequest, match="send fewer"):
        made.begun(_tools(30, MAX_GRAMMAR // 29, strict=True), many=True)


def test_one_schema_of_many_tools_is_compiled_once(message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = message("hermes", PROMPT)
    seen: list[str] = []
    monkeypatch.setattr(messages, "is_sound", lambda source: bool(seen.append(source)) or True)
    made.forced(_tools(20, 10), many=True)
    assert len(seen) == 20
    assert len({*seen}) == 1


@pytest.mark.parametrize("name", ["hermes", "qwen3_xml", "gemma"])
def test_a_strict_tools_error_names_the_tool_and_the_path_in_its_schema(message: Message, name: str) -> None:
    _, made = message(name, PROMPT)
    inner = {"type": "object", "properties": {"b": {"type": "array", "items": {"type": "string", "pattern": "("}}}}
    good, bad = SCHEMA, {"type": "object", "properties": {"a": {"type": "integer"}, "inner": inner}}
    tools = [
        CallableTool(name=f"f{i}", parameters=schema, strict=True, param=f"tools.{i}.function.parameters")
        for i, schema in enumerate([good, good, bad, good])
    ]
    for grammar in (made.forced, made.begun):
        with pytest.raises(BadRequest) as caught:
            grammar(tools, many=True)
        path = "tools.2.function.parameters.properties.inner"
        assert str(caught.value.param).startswith(path), caught.value.param
        if name == "hermes":  # in other forms arguments, or parts of them, are grammars of their own
            assert caught.value.param == f"{path}.properties.b.items.pattern"
    assert made.forced([tools[0], replace(tools[2], strict=False)], many=True)


def test_a_custom_tools_error_names_its_format_alone(message: Message) -> None:
    _, made = message("hermes", PROMPT)
    text = {"type": "object", "properties": {"input": {"type": "string", "pattern": "^(?:()$"}}, "required": ["input"]}
    wrong = CallableTool(name="f", parameters=text, custom=True, strict=True, param="tools.1.custom.format")
    with pytest.raises(BadRequest, match="unclosed group") as caught:
        made.forced([CallableTool(name="g"), wrong], many=True)
    assert caught.value.param == "tools.1.custom.format"
