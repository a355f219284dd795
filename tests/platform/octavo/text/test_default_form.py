"""Tools for templates that know none: all of it is plain text in messages that every template renders."""

from __future__ import annotations

from octavo.text.default_form import in_default_form, knows_tools

TOOL = {"type": "function", "function": {"name": "look_up"}}
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"a": 1}'}}


def test_definitions_go_into_the_system_message_there_is() -> None:
    system, user = in_default_form([USER], [TOOL])
    assert (system["role"], user) == ("system", USER)
    assert '{"type": "function", "function": {"name": "look_up"}}' in system["content"]
    first, _ = in_default_form([{"role": "developer", "content": "Be kind."}, USER], [TOOL])
    assert first == {"role": "developer", "content": "Be kind.\n\n" + system["content"]}


def test_contents_in_parts_stay_parts() -> None:
    parts = [{"type": "text", "text": "Be kind."}]
    first, _ = in_default_form([{"role": "system", "content": parts}, USER], [TOOL])
    assert first["content"][0] == parts[0]
    _, result = in_default_form([{"role": "tool", "content": parts}], [TOOL])
    assert [part["text"] for part in result["content"]] == ["<tool_response>", "Be kind.", "</tool_response>"]


def test_calls_and_results_are_texts() -> None:
    calls = [CALL, {"function": {"name": "now", "arguments": None}}]
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "2"}]
    _, assistant, result = in_default_form(messages, [TOOL])
    assert assistant == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "look_up", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    }
    assert result == {"role": "user", "content": "<tool_response>\n2\n</tool_response>"}


def test_without_tools_there_is_only_what_was_called() -> None:
    assert in_default_form([USER, {"role": "tool", "content": "2"}], []) == [
        USER,
        {"role": "user", "content": "<tool_response>\n2\n</tool_response>"},
    ]


def test_what_is_malformed_is_left_for_others_to_refuse() -> None:
    messages = ["x", {"role": "assistant", "tool_calls": "none"}]
    assert in_default_form(messages, [TOOL])[1:] == messages


def test_which_templates_know_tools() -> None:
    assert knows_tools("{% if tools %}")
    assert not knows_tools("{{ messages }}")
