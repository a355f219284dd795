"""Inputs as chats, rendered around the place of a question."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.body import parse
from octavo_serve.api.threads import Threads
from octavo_serve.surfaces.decisions.schemas import DecisionRequest
from octavo_serve.surfaces.decisions.state import Frame, chat_of, framed

CALL = {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"a":1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "a.txt"}


def chat(asked: Any) -> list[dict[str, Any]]:
    question = {"type": "predicate", "instructions": "x"}
    return chat_of(parse(DecisionRequest, {"input": asked, "questions": [question]}).input).unpacked()


def frame(asked: Any, tokenizer: Tokenizer) -> Frame:
    body = parse(DecisionRequest, {"input": asked, "questions": [{"type": "predicate", "instructions": "x"}]})
    return asyncio.run(framed(chat_of(body.input), tokenizer, Threads()))


class Templated:
    """A tokenizer of which only the template matters."""

    def __init__(self, template: str) -> None:
        self.chat_templates = {"default": template}
        self.special_tokens: dict[str, str] = {}


def test_calls_belong_to_the_message_before_them() -> None:
    custom = {"type": "custom_tool_call", "call_id": "d", "name": "sh", "input": 'echo "x"', "namespace": "os"}
    said = {"role": "assistant", "content": "I look.", "phase": "commentary"}
    custom_output = {"type": "custom_tool_call_output", "call_id": "d", "output": "x"}
    assert chat([{"role": "user", "content": "Go"}, said, CALL, custom, OUTPUT, custom_output]) == [
        {"role": "user", "content": "Go"},
        {
            "role": "assistant",
            "content": "I look.",
            "phase": "commentary",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
                {
                    "id": "d",
                    "type": "function",
                    "function": {"name": "os.sh", "arguments": '{"input": "echo \\"x\\""}'},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "c", "name": "look", "content": "a.txt"},
        {"role": "tool", "tool_call_id": "d", "name": "os.sh", "content": "x"},
    ]


def test_two_messages_of_a_user_are_one() -> None:
    talk = [{"role": "system", "content": "Be fair."}, *({"role": "user", "content": x} for x in "abc")]
    assert chat(talk)[1:] == [{"role": "user", "content": "a\n\nb\n\nc"}]
    apart = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant", "assistant")]
    assert chat(apart) == apart


def test_an_output_needs_its_call() -> None:
    for items in ([OUTPUT], [OUTPUT, CALL], [CALL, OUTPUT | {"call_id": "other"}]):
        with pytest.raises(BadRequest, match=r"input\[\d\].call_id '\w+' is of no call before it"):
            chat(items)


def test_the_question_ends_the_users_message(tokenizer: Tokenizer) -> None:
    found = frame("I was charged twice.", tokenizer)
    assert found.before.endswith("<|im_start|>user\nI was charged twice.\n\n")
    assert found.after == "<|im_end|>\n<|im_start|>assistant\n"
    system = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Hi"}]
    assert frame(system, tokenizer).before == "<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\nHi\n\n"


def test_after_others_it_has_a_message_of_its_own(tokenizer: Tokenizer) -> None:
    talk = [{"role": "system", "content": "Be fair."}, {"role": "assistant", "content": "Hi"}]
    assert frame(talk, tokenizer).before.endswith("assistant\nHi<|im_end|>\n<|im_start|>user\n")


def test_a_template_that_knows_no_tools_is_given_calls_as_text(tokenizer: Tokenizer) -> None:
    before = frame([{"role": "system", "content": "Be fair."}, CALL, OUTPUT], tokenizer).before
    assert before == (
        '<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "look", "arguments": '
        '{"a":1}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\na.txt\n</tool_response>\n\n'
    )


def test_a_template_that_knows_tools_gets_calls_as_they_are() -> None:
    known = Templated(
        "{% set x = tools %}{% for m in messages %}{{ m.role }}({{ m.tool_calls[0].function.name if m.tool_calls }}"
        "{{ m.content }}){% endfor %}!"
    )
    found = frame([CALL, OUTPUT], known)
    assert found.before == "assistant(look)tool(a.txt)user("
    assert found.after == ")!"


def test_thinking_is_switched_off() -> None:
    thinker = Templated("{{ messages[0].content }}{{ '' if enable_thinking else '<think></think>' }}")
    assert frame("Hi", thinker).after == "<think></think>"


@pytest.mark.parametrize("template", ["{{ messages[0].role }}", "{{ messages[0].content * 2 }}"])
def test_a_template_that_changes_messages_is_refused(template: str) -> None:
    with pytest.raises(BadRequest, match="does not write the last message"):
        frame("Hi", Templated(template))
