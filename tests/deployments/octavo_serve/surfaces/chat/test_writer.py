"""Chats over a scripted model: what the OpenAI SDKs expect, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.model import Defaults


def test_chat(talk: Any, client: Any) -> None:
    client.cached_tokens = 16
    answer = talk.chat()
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": "Paris.", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    prompt_tokens = len(client.opened[0].prompt_token_ids)
    generated = len(client.tokenizer.encode("Paris.")) + 1  # and the end token
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def test_a_chat_stream_is_a_role_then_deltas_then_the_reason_then_usage(talk: Any) -> None:
    chunks = talk.chat_events(stream_options={"include_usage": True})
    *events, last = chunks
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["usage"] for chunk in events] == [None] * len(events)
    assert (last["choices"], last["usage"]["completion_tokens"] > 0) == ([], True)
    deltas = [chunk["choices"][0]["delta"] for chunk in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Paris."
    assert [chunk["choices"][0]["finish_reason"] for chunk in events] == [None] * (len(events) - 1) + ["stop"]


def test_characters_are_never_cut(talk: Any, client: Any) -> None:
    client.texts = ["Brücke 🌉 橋"]
    contents = [chunk["choices"][0]["delta"].get("content", "") for chunk in talk.chat_events()]
    assert "".join(contents) == "Brücke 🌉 橋"
    assert not any("\ufffd" in content for content in contents)


def test_chat_logprobs_name_each_token(talk: Any, client: Any) -> None:
    content = talk.chat(logprobs=True, top_logprobs=2, max_tokens=2)["choices"][0]["logprobs"]["content"]
    tokens = client.tokenizer.encode("Paris.")[:2]
    assert [bytes(entry["bytes"]) for entry in content] == [client.tokenizer.token_bytes(token) for token in tokens]
    assert [entry["logprob"] for entry in content] == [-0.5, -0.5]
    assert [[top["logprob"] for top in entry["top_logprobs"]] for entry in content] == [[-0.5, -1.5]] * 2
    streamed = talk.chat_events(logprobs=True, top_logprobs=2, max_tokens=2)
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed if chunk["choices"][0]["logprobs"]]
    assert [entry for part in parts for entry in part["content"]] == content


def test_n_choices_come_from_one_request(talk: Any, client: Any) -> None:
    client.texts = ["One.", "Two, three."]
    answer = talk.chat(n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["One.", "Two, three."]
    assert len(client.opened) == 1
    chunks = talk.chat_events(n=2)
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == ["One.", "Two, three."]


def test_a_limit_that_is_too_low_is_called_by_its_name(talk: Any) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(BadRequest, match=f"^{name} must be at least 1") as refused:
            talk.chat(**{name: 0})
        assert refused.value.param == name


def test_usage_says_what_came_of_a_prediction(talk: Any, client: Any) -> None:
    """Counted over both choices, once for each token, also where origins are told apart."""
    client.texts, client.forces = ["One two."], True
    client.guessed = 3, 2
    predicted = {"type": "content", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two."}]}
    usage = talk.chat(n=2, prediction=predicted, return_token_origins=True)["usage"]["completion_tokens_details"]
    steps = len(client.tokenizer.encode("One two.", add_special_tokens=False))
    assert (usage["accepted_prediction_tokens"], usage["rejected_prediction_tokens"]) == (6 * steps, 4 * steps)
    assert client.tokenizer.decode(client.opened[0].predicted) == "One two."
    events = talk.chat_events(stream_options={"include_usage": True}, prediction=predicted)
    assert events[-1]["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == 3 * steps
    client.guessed = 0, 0
    assert talk.chat()["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == 0
    assert client.opened[-1].predicted is None


def test_max_completion_tokens_wins_and_is_counted(talk: Any, client: Any) -> None:
    client.texts = ["One two three four five six seven."]
    answer = talk.chat(max_tokens=0, max_completion_tokens=5)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    assert talk.chat(max_tokens=1, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_token_ids_of_characters_that_are_not_whole_are_not_lost(talk: Any, client: Any) -> None:
    client.texts = ["Brücke 🌉 橋"]
    chunks = talk.chat_events(return_token_ids=True)
    ids = [token for chunk in chunks for c in chunk["choices"] for token in c.get("token_ids", ())]
    assert ids[:-1] == client.tokenizer.encode("Brücke 🌉 橋")


def test_origins_of_tokens_are_told_where_they_are_asked_for(talk: Any, client: Any) -> None:
    client.forces = True
    origins = {"sampled": 1, "forced": 2}
    assert talk.chat(return_token_origins=True)["choices"][0]["token_origins"] == origins
    told = [c.get("token_origins") for chunk in talk.chat_events(return_token_origins=True) for c in chunk["choices"]]
    told = [each for each in told if each]
    assert all(0 in each.values() for each in told)
    assert {kind: sum(each[kind] for each in told) for kind in origins} == origins
    assert "token_origins" not in talk.chat()["choices"][0]


LOOK_UP = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"properties": {"a": {"type": "integer"}}}},
}
CALLS = '<tool_call>\n{"name": "look_up", "arguments": {"a": 1}}\n</tool_call>'


def joined(chunks: list[Any]) -> dict[str, Any]:
    """A stream's message, put together as OpenAI's SDKs do."""
    message: dict[str, Any] = {"content": "", "tool_calls": []}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        message["content"] += delta.get("content", "")
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"id": part["id"], "type": part["type"], "function": part["function"]})
            else:
                message["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return message


def test_calls_are_told_from_content_in_answers_and_streams(talk: Any, client: Any) -> None:
    """The model's template knows no tools: they are written in the default form, and read in it."""
    client.texts = ["Let me look.\n" + CALLS + "\n" + CALLS]
    (choice,) = talk.chat(tools=[LOOK_UP])["choices"]
    calls = choice["message"]["tool_calls"]
    prompt = client.tokenizer.decode(client.opened[0].prompt_token_ids)
    assert '"name": "look_up"' in prompt
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "Let me look.")
    assert [call["function"] for call in calls] == [{"name": "look_up", "arguments": '{"a": 1}'}] * 2
    assert {call["type"] for call in calls} == {"function"}
    chunks = talk.chat_events(tools=[LOOK_UP])
    streamed = joined(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert streamed["content"] == "Let me look."
    assert [call["function"] for call in streamed["tool_calls"]] == [call["function"] for call in calls]
    assert len({call["id"] for call in [*calls, *streamed["tool_calls"]]}) == 4


def test_a_call_alone_has_no_content(talk: Any, client: Any) -> None:
    client.texts = [CALLS + CALLS]
    message = talk.chat(tools=[LOOK_UP], parallel_tool_calls=False)["choices"][0]["message"]
    assert (message["content"], len(message["tool_calls"])) == (None, 1)


def test_the_input_of_a_custom_tool_is_a_text_and_comes_as_a_whole(talk: Any, client: Any) -> None:
    run = {"type": "custom", "custom": {"name": "run"}}
    long = "x" * 600  # what is longer than a parser holds back comes in parts
    custom = f'<tool_call>\n{{"name": "run", "arguments": {{"input": "a\\n{long}"}}}}\n</tool_call>'
    client.texts = [f"So:\n{custom}\n{CALLS}\n{custom}"]
    message = talk.chat(tools=[run, LOOK_UP])["choices"][0]["message"]
    chunks = talk.chat_events(tools=[run, LOOK_UP])
    deltas = [delta for chunk in chunks for delta in chunk["choices"][0]["delta"].get("tool_calls", [])]
    for calls in (message["tool_calls"], [delta for delta in deltas if delta.get("type")]):
        assert [call["type"] for call in calls] == ["custom", "function", "custom"]
        assert [calls[at]["custom"] for at in (0, 2)] == [{"name": "run", "input": f"a\n{long}"}] * 2
    assert sum(delta["type"] == "custom" for delta in deltas if "type" in delta) == 2
    assert message["content"] == "So:"


def test_what_a_call_returned_goes_back(talk: Any, client: Any) -> None:
    client.texts = [CALLS]
    message = talk.chat(tools=[LOOK_UP])["choices"][0]["message"]
    client.texts = ["It is 2."]
    for result in ("two", [{"type": "text", "text": "two"}]):
        turn = [{"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": result}]
        messages = [{"role": "user", "content": "Look"}, message | {"reasoning_content": "Hm."}, *turn]
        answer = talk.chat(tools=[LOOK_UP], messages=messages)["choices"][0]
        assert (answer["message"], answer["finish_reason"]) == (
            {"role": "assistant", "content": "It is 2.", "refusal": None},
            "stop",
        )
        prompt = client.tokenizer.decode(client.opened[-1].prompt_token_ids)
        assert '{"name": "look_up", "arguments": {"a": 1}}' in prompt
        assert "<tool_response>\ntwo\n</tool_response>" in prompt


def test_no_call_without_tools_or_where_none_is_wanted(talk: Any, client: Any) -> None:
    client.texts = [CALLS]
    for asked in ({}, {"tools": [LOOK_UP], "tool_choice": "none"}):
        (choice,) = talk.chat(**asked)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALLS, "stop")


def test_reasoning_is_told_from_content(talk: Any, client: Any, service: Any) -> None:
    entry = service.models.find(None)
    entry.defaults = Defaults(response_template="glm")
    client.texts = ["<think>Hm.</think>\nYes."]
    answer = talk.chat()
    said = {"content": "Yes.", "reasoning_content": "Hm.", "reasoning": "Hm."}
    assert answer["choices"][0]["message"] == {"role": "assistant", "refusal": None} | said
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    deltas = [chunk["choices"][0]["delta"] for chunk in talk.chat_events()]
    assert {name: "".join(delta.get(name, "") for delta in deltas) for name in said} == said
    hidden = talk.chat(include_reasoning=False)["choices"][0]["message"]
    assert hidden == {"role": "assistant", "refusal": None, "content": "Yes."}
    assert not any("reasoning" in chunk["choices"][0]["delta"] for chunk in talk.chat_events(include_reasoning=False))
