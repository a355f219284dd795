"""Answers and events of /v1/responses, as OpenAI's SDK reads them."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo_serve.api.model import Defaults

CALL = '<tool_call>\n{"name": "look_up", "arguments": {"a": 1}}\n</tool_call>'
LOOK_UP = {"type": "function", "name": "look_up", "parameters": {"properties": {"a": {"type": "integer"}}}}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"+'},
}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types of events, each once where several follow each other."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def test_a_text(api: Any) -> None:
    answer = api.create(metadata={"a": "b"}, user="u")
    (item,) = answer["output"]
    assert (answer["status"], answer["metadata"], answer["user"]) == ("completed", {"a": "b"}, "u")
    assert item["content"] == [{"type": "output_text", "text": "Paris.", "annotations": [], "logprobs": []}]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert answer["completed_at"] >= answer["created_at"]


def test_the_events_of_a_text(api: Any, client: Any) -> None:
    client.cached_tokens = 16
    events = api.stream()
    assert kinds(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert "".join(event["delta"] for event in events if "delta" in event) == "Paris."
    last = events[-1]["response"]
    assert last["output"] == [events[-2]["item"]]
    assert last["usage"]["input_tokens_details"]["cached_tokens"] == 16
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])


def test_a_stream_says_what_the_answer_says(api: Any, client: Any, service: Any) -> None:
    service.models.find(None).defaults = Defaults(response_template="hermes")
    client.texts = ["<think>Hm.</think>Let me look.\n" + CALL + "\n" + CALL]
    streamed = api.stream(tools=[LOOK_UP])[-1]["response"]
    answered = api.create(tools=[LOOK_UP])
    for one, other in zip(streamed["output"], answered["output"], strict=True):
        assert {k: v for k, v in one.items() if k not in ("id", "call_id")} == {
            k: v for k, v in other.items() if k not in ("id", "call_id")
        }
    assert streamed["usage"] == answered["usage"]


def test_calls(api: Any, client: Any) -> None:
    client.texts = ["Let me look.\n" + CALL + "\n" + CALL]
    events = api.stream(tools=[LOOK_UP])
    response = events[-1]["response"]
    message, *calls = response["output"]
    assert (message["content"][0]["text"], response["status"]) == ("Let me look.", "completed")
    assert [(call["name"], call["arguments"], call["status"]) for call in calls] == [
        ("look_up", '{"a": 1}', "completed")
    ] * 2
    assert len({call["call_id"] for call in calls}) == len({item["id"] for item in response["output"]}) - 1 == 2
    assert kinds(events)[8:12] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
    ]  # fmt: skip
    assert response["tools"] == [LOOK_UP | {"description": None, "strict": None}]


def test_a_call_of_a_custom_tool_has_a_text(api: Any, client: Any) -> None:
    client.texts = ['<tool_call>\n{"name": "apply_patch", "arguments": {"input": "*** Begin\\n"}}\n</tool_call>']
    events = api.stream(tools=[PATCH, LOOK_UP])
    (call,) = events[-1]["response"]["output"]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "apply_patch", "*** Begin\n")
    assert "".join(e["delta"] for e in events if e["type"].endswith("input.delta")) == "*** Begin\n"
    assert api.create(tools=[PATCH])["tools"] == [PATCH]


def test_a_tool_of_a_namespace_is_called_by_both_names(api: Any, client: Any) -> None:
    space = {"type": "namespace", "name": "files__", "description": "Files.", "tools": [LOOK_UP]}
    client.texts = [CALL.replace("look_up", "files__look_up")]
    (call,) = api.create(tools=[space])["output"]
    assert (call["name"], call["namespace"]) == ("look_up", "files__")


@pytest.mark.parametrize(("summary", "place"), [(None, "content"), ("auto", "summary")])
def test_reasoning(api: Any, client: Any, service: Any, summary: str | None, place: str) -> None:
    service.models.find(None).defaults = Defaults(response_template="glm")
    client.texts = ["<think>Hm, so.</think>\nYes."]
    events = api.stream(reasoning={"summary": summary})
    reasoning, message = events[-1]["response"]["output"]
    assert [part["text"] for part in reasoning[place]] == ["Hm, so."]
    assert message["content"][0]["text"] == "Yes."
    assert events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    names = ["reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.done"]
    if summary is None:
        names = ["content_part.added", "reasoning_text.delta", "reasoning_text.done"]
    assert kinds(events)[3:6] == names
    assert "encrypted_content" not in reasoning


def test_what_is_cut_is_incomplete(api: Any, client: Any) -> None:
    client.texts = ["One two three four five six."]
    events = api.stream(max_output_tokens=3)
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"]) == ("response.incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (response["output"][0]["status"], response["completed_at"]) == ("incomplete", None)
    assert api.create(max_output_tokens=3)["output"][0]["content"] == response["output"][0]["content"]


def test_an_answer_of_nothing_is_an_empty_message(api: Any, client: Any) -> None:
    client.texts = ["<think></think>"]
    (item,) = api.create(tools=[LOOK_UP], max_output_tokens=1)["output"]
    assert item["type"] == "message"


def test_log_probabilities_are_those_of_the_text(api: Any, client: Any) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = api.stream(**asked)
    (part,) = events[-1]["response"]["output"][0]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == "Paris."
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    assert [entry for event in events for entry in event.get("logprobs", ()) if "delta" in event] == part["logprobs"]
    assert api.create(**asked)["output"][0]["content"] == [part]


def test_an_error_in_a_stream_is_a_failed_response(api: Any, client: Any) -> None:
    client.late_error, client.fail_after = OctavoError("the token was not a number"), 1
    last = api.stream()[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["message"] == "the token was not a number"
