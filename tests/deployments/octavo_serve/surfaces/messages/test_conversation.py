"""Messages and tools of the API as chat templates read them."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.surfaces.messages.conversation import Conversation
from octavo_serve.surfaces.messages.schemas import PromptBody
from octavo_serve.surfaces.messages.signature import sign

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def read(*messages: dict[str, Any], **more: Any) -> Conversation:
    return parse(PromptBody, {"model": "m", "messages": list(messages)} | more).conversation


def plain(*messages: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_unset=True) for message in read(*messages, **more).messages]


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": blocks[0] if isinstance(blocks[0], str) else list(blocks)}


def text(of: str) -> dict[str, Any]:
    return {"type": "text", "text": of, "cache_control": {"type": "ephemeral"}}


def result(of: str, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": of, **more}


CALLS = {
    "role": "assistant",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "theirs"},
        {"type": "redacted_thinking", "data": "x"},
        text("I look."),
        {"type": "tool_use", "id": "t1", "name": "look_up", "input": {"a": "é"}},
        {"type": "tool_use", "id": "t2", "name": "look_up", "input": {}},
    ],
}


def test_a_turn_with_thinking_calls_and_their_results() -> None:
    answers = user(
        result("t1", content="one"),
        result("t2", content=[text("two"), text("lines")], is_error=True),
        text("And now?"),
    )
    assert plain(user("Hi"), CALLS, answers) == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "look_up", "arguments": '{"a": "é"}'}},
                {"id": "t2", "type": "function", "function": {"name": "look_up", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "one", "tool_call_id": "t1", "name": "look_up"},
        {"role": "tool", "content": "Error:\ntwo\nlines", "tool_call_id": "t2", "name": "look_up"},
        {"role": "user", "content": "And now?"},
    ]


def test_messages_of_one_role_are_one_turn() -> None:
    parts = [{"type": "text", "text": one} for one in ("a", "b", "c")]
    assert plain(user("a"), user(text("b"), text("c"))) == [{"role": "user", "content": parts}]
    nothing = {"role": "assistant", "content": []}
    assert plain(user("a"), nothing, user("b"))[1] == {"role": "assistant", "content": ""}


def test_the_billing_header_changes_nothing() -> None:
    def asked(header: str) -> list[dict[str, Any]]:
        return plain(user("Hi"), system=[text(header), text("Be brief."), text("x-ray: a word")])

    header = "x-anthropic-billing-header: cc_version=2.1; cch="
    assert asked(header + "1f3;") == asked(header + "99a;\n")
    assert asked(header)[0]["content"] == [
        {"type": "text", "text": "Be brief."},
        {"type": "text", "text": "x-ray: a word"},
    ]
    assert plain(user("Hi"), system=f"{header}7;\nBe brief.")[0] == {"role": "system", "content": "Be brief."}


def test_a_system_message_is_at_the_beginning_or_in_the_users_turn() -> None:
    first, later = {"role": "system", "content": "Be brief."}, {"role": "system", "content": [text("It is late.")]}
    found = plain(first, user("Hi"), later, {"role": "assistant", "content": "Yes"}, later, system="Be kind.")
    assert [message["role"] for message in found] == ["system", "user", "assistant", "user"]
    assert [part["text"] for part in found[0]["content"]] == ["Be kind.", "Be brief."]
    assert found[1]["content"][1]["text"] == "<system>\nIt is late.\n</system>" == found[3]["content"]


def test_thinking_that_was_omitted_comes_back() -> None:
    for signature, thought in ((sign("Hm.", carry=True), "Hm."), ("theirs", None)):
        block = {"type": "thinking", "thinking": "", "signature": signature}
        said = plain(user("Hi"), {"role": "assistant", "content": [block, text("Yes")]}, user("So?"))[1]
        assert said.get("reasoning_content") == thought


def test_an_assistants_last_message_is_gone_on_with() -> None:
    assert read(user("Hi"), {"role": "assistant", "content": "I say"}).continues
    assert not read(user("Hi")).continues
    for last in (CALLS, {"role": "assistant", "content": ""}, {"role": "assistant", "content": []}):
        with pytest.raises(BadRequest, match="no text to go on with"):
            read(user("Hi"), last)


def test_tools_are_what_templates_know() -> None:
    tool = {"strict": True, "input_schema": SCHEMA, "name": "look_up", "description": "Looks up."}
    tool |= {"input_examples": [{"a": 1}], "cache_control": {"type": "ephemeral"}, "type": "custom"}
    described = 'Looks up.\nExamples:\n{"a": 1}'
    function = {"name": "look_up", "description": described, "parameters": SCHEMA, "strict": True}
    assert read(user("Hi"), tools=[tool]).tools == [{"type": "function", "function": function}]


def test_a_deferred_tool_is_shown_once_it_is_referred_to() -> None:
    tools = [{"name": name, "input_schema": SCHEMA, "defer_loading": name != "search"} for name in ("search", "b", "c")]

    def shown(*messages: dict[str, Any]) -> list[str]:
        return [tool["function"]["name"] for tool in read(user("Hi"), *messages, tools=tools).tools]

    found = user(result("t1", content=[{"type": "tool_reference", "tool_name": "c"}]))
    added, removed = (
        {"role": "system", "content": [{"type": kind, "tool": {"type": "tool_reference", "name": "b"}}]}
        for kind in ("tool_addition", "tool_removal")
    )
    assert shown() == ["search"]
    assert shown(CALLS, found) == ["search", "c"]
    assert shown(added) == ["search", "b"]
    assert shown(added, removed) == ["search"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (user(CALLS["content"][3]), "messages.0 is of the role user: a block of type 'tool_use' is the assistant's"),
        ({"role": "assistant", "content": [result("t1")]}, "'tool_result' is the user's"),
        ({"role": "system", "content": "Be brief."}, "messages must hold what a user says"),
    ],
)
def test_a_block_in_the_wrong_message_is_refused(message: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        read(message)
