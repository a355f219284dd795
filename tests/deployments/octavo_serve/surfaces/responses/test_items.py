"""Items of the input: what they may be, and the chat that they make."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from octavo.errors import BadRequest
from octavo_serve.surfaces.responses.items import checked_items, messages_of, usual

_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
roles = st.sampled_from(["user", "system", "developer", "assistant"])
parts = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text"]), "text": texts}))
messages = st.fixed_dictionaries(
    {"role": roles, "content": texts | parts}, optional={"type": st.just("message"), "id": st.just("msg_1")}
)
reasoning = st.fixed_dictionaries(
    {"type": st.just("reasoning"), "summary": st.just([])},
    optional={"content": st.lists(st.fixed_dictionaries({"type": st.just("reasoning_text"), "text": texts}))},
)
calls = st.fixed_dictionaries(
    {"type": st.just("function_call"), "call_id": names, "name": names, "arguments": texts},
    optional={"namespace": names},
)
customs = st.fixed_dictionaries({"type": st.just("custom_tool_call"), "call_id": names, "name": names, "input": texts})
results = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["function_call_output", "custom_tool_call_output"]),
        "call_id": names,
        "output": texts | parts,
    }
)
items = st.lists(messages | reasoning | calls | customs | results, min_size=1, max_size=8).filter(
    lambda given: any(item.get("type") != "reasoning" for item in given)
)


def chat(given: Any, instructions: str | None = None) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_unset=True) for message in messages_of(instructions, usual(given), str)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded machine draws slowly
@given(items)
def test_the_usual_form_is_stable_and_is_what_sdks_list(given: list[dict[str, Any]]) -> None:
    form = usual(checked_items(given))
    assert usual(checked_items(form)) == form
    assert chat(form) == chat(given)
    for item in form:
        _ITEM.validate_python(item, strict=True)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded machine draws slowly
@given(items)
def test_no_text_is_lost(given: list[dict[str, Any]]) -> None:
    said = str(chat(given))
    for item in given:
        for text in (item.get("content"), item.get("output"), item.get("name")):
            assert not isinstance(text, str) or repr(text)[1:-1] in said or '"' in text or "'" in text


def test_a_text_is_a_users_message() -> None:
    assert chat("Hello") == [{"role": "user", "content": "Hello"}]


def test_what_the_assistant_said_in_a_turn_is_one_message() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "two"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    text = {"role": "assistant", "content": [{"type": "output_text", "text": "So:"}]}
    function = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "reasoning_content": "Hm.", "content": "So:", "tool_calls": [function, function]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "two"}
    assert chat([thought, text, call, call, output]) == [turn, result]
    assert chat([text, thought]) == [
        {"role": "assistant", "content": "So:"},
        {"role": "assistant", "reasoning_content": "Hm."},
    ]
    assert [message["role"] for message in chat([call, text])] == ["assistant", "assistant"]


def test_reasoning_that_came_without_its_text_is_left_out() -> None:
    empty = {"type": "reasoning", "summary": []}
    assert chat([{"role": "user", "content": "a"}, empty, {"role": "user", "content": "b"}]) == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    with pytest.raises(BadRequest, match="must not be empty"):
        chat([empty])


def test_instructions_and_what_leads_are_one_message() -> None:
    led = [{"role": "developer", "content": "B"}, {"role": "user", "content": "C"}, {"role": "system", "content": "D"}]
    assert chat(led, "A") == [
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": "C"},
        {"role": "system", "content": "D"},
    ]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (1, "input must be a string or a list"),
        ([1], "input[0] must be an object"),
        ([{}], "input[0].type 'None' is not supported"),
        ([{"type": "computer_call"}], "input[0].type 'computer_call' is not supported"),
        ([{"role": "tool", "content": "x"}], "input[0].role must be one of"),
        ([{"role": "user"}], "input[0].content must be a string or a list"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0] is of type 'input_image'"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text must be a string"),
        ([{"type": "function_call", "call_id": "c", "name": "f"}], "input[0].arguments must be a string"),
        ([{"type": "function_call_output", "call_id": "c"}], "input[0].output must be a string or a list"),
        ([{"type": "reasoning", "summary": "x"}], "input[0].summary must be a list of parts"),
        ([{"type": "item_reference"}], "input[0].id must name an item"),
        ([{"role": "user", "content": "x", "id": 1}], "input[0].id must be a string"),
        ([], "input must not be empty"),
    ],
)  # fmt: skip
def test_what_is_no_item_is_refused(api: Any, given: Any, sentence: str) -> None:
    message, param = api.refused(given)
    assert message.startswith(sentence)
    assert param == "input"


ANSWERS = [
    "Paris.",
    "<think>Hm.</think>Yes.",
    "Look:\n" + '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' * 2,
]


@pytest.mark.parametrize("text", ANSWERS)
def test_whatever_an_answer_gave_goes_back(api: Any, client: Any, text: str) -> None:
    tools = {"tools": [{"type": "function", "name": "f"}]}
    client.texts = [text]
    output = api.create(**tools)["output"]
    outputs = [
        {"type": item["type"] + "_output", "call_id": item["call_id"], "output": "two"}
        for item in output
        if "call_id" in item
    ]
    api.create([{"role": "user", "content": "Hello"}, *output, *outputs], **tools)
