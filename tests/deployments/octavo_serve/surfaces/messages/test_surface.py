"""Messages as Anthropic's own SDK sees them: its accumulator, its errors, its types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from octavo.errors import EngineDead, OctavoError, Overloaded
from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.model import Defaults
from octavo_serve.api.service import Service
from octavo_serve.http.app import http_app

LOOK_UP: Any = {"name": "look_up", "description": "Look up", "input_schema": {"type": "object", "properties": {}}}
ANSWER = '<think>Hm, hm.</think>Yes.<tool_call>{"name": "look_up", "arguments": {"a": {"b": [1, 2]}}}</tool_call>'
HI: Any = {"model": "tiny", "max_tokens": 200, "messages": [{"role": "user", "content": "Hello"}]}

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    + "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    + "{% if not loop.last or add_generation_prompt %}<|im_end|>\n{% endif %}{% endfor %}"
    + "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Ask = Callable[[Callable[[anthropic.AsyncAnthropic], Awaitable[Any]]], Any]


@pytest.fixture
def access() -> Access:
    return Access()


@pytest.fixture
def ask(service: Service, backend: Any, access: Access, client: Any, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Do something with the SDK, connected to an application whose model thinks and calls tools as Qwen's do."""
    service.models.entries["tiny"].update(defaults=Defaults(response_template="hermes"))
    monkeypatch.setattr(client.tokenizer, "chat_templates", {"default": TEMPLATE})
    client.texts = [ANSWER]

    async def run(use: Callable[[anthropic.AsyncAnthropic], Awaitable[Any]]) -> Any:
        transport = httpx2.ASGITransport(http_app(service, backend, access), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport) as http:
            return await use(
                anthropic.AsyncAnthropic(base_url="http://test", api_key="sk", http_client=http, max_retries=0)
            )

    return lambda use: asyncio.run(run(use))


async def _streamed(sdk: anthropic.AsyncAnthropic, **extra: Any) -> tuple[list[Any], Message]:
    async with sdk.messages.stream(**(HI | extra)) as stream:
        events = [event async for event in stream]
        return events, await stream.get_final_message()


def test_a_stream_adds_up_to_the_whole_answer(ask: Ask, client: Any) -> None:
    client.cached_tokens = 16
    whole = ask(lambda sdk: sdk.messages.create(**HI, tools=[LOOK_UP]))
    events, final = ask(lambda sdk: _streamed(sdk, tools=[LOOK_UP]))
    thinking, text, call = whole.content
    assert (thinking.type, thinking.thinking, text.text) == ("thinking", "Hm, hm.", "Yes.")
    assert (call.name, call.input) == ("look_up", {"a": {"b": [1, 2]}})
    assert (whole.stop_reason, whole.stop_sequence) == ("tool_use", None)
    assert whole.usage.input_tokens + 16 == len(client.opened[0].prompt_token_ids)
    assert (whole.usage.cache_read_input_tokens, whole.usage.cache_creation_input_tokens) == (16, 0)
    assert 0 < whole.usage.output_tokens_details.thinking_tokens < whole.usage.output_tokens
    for message in (whole, final):
        assert message.id.startswith("msg_")
        message.id = message.content[2].id = "same"
    assert final.to_dict(exclude_none=True) == whole.to_dict(exclude_none=True)
    kinds = [event.type for event in events if event.type not in ("text", "thinking", "signature", "input_json")]
    assert list(dict.fromkeys(kinds)) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def _raw(ask: Ask, **extra: Any) -> list[tuple[str, Any]]:
    async def read(sdk: anthropic.AsyncAnthropic) -> str:
        answer = await sdk._client.post(
            "http://test/v1/messages?beta=true",
            json=HI | {"stream": True} | extra,
            headers={"x-api-key": "sk", "anthropic-version": "2023-06-01", "anthropic-beta": "unheard-of-2026"},
        )
        return str(answer.text)

    *events, rest = ask(read).split("\n\n")
    assert rest == ""
    lines = [event.split("\n") for event in events]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_events_have_names_an_order_and_no_other_fields_than_the_sdks(ask: Ask) -> None:
    events = _raw(ask, tools=[LOOK_UP])
    names = [name for name, _ in events]
    assert [event["type"] for _, event in events] == names
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    open_block, index = False, -1
    for name, event in events:
        if name == "content_block_start":
            assert not open_block
            open_block, index = True, index + 1
        if name.startswith("content_block"):
            assert (open_block, event["index"]) == (True, index)
        open_block = open_block and name != "content_block_stop"
    deltas = [event["delta"]["type"] for name, event in events if name == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    checks: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    for name, event in events:
        if name != "ping":
            parsed = checks.validate_python(event)
            assert not parsed.model_extra


def test_thinking_that_is_omitted_is_in_the_signature(ask: Ask, client: Any) -> None:
    asked: Any = {"thinking": {"type": "adaptive", "display": "omitted"}}
    client.texts = ["<think>Hm, hm.</think>Yes."]
    _, final = ask(lambda sdk: _streamed(sdk, **asked))
    whole = ask(lambda sdk: sdk.messages.create(**HI, **asked))
    assert whole.to_dict()["content"] == final.to_dict()["content"]
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == ""
    again = [*HI["messages"], {"role": "assistant", "content": final.to_dict()["content"]}, *HI["messages"]]
    ask(lambda sdk: sdk.messages.create(**(HI | {"messages": again})))
    prompt = client.tokenizer.decode(client.opened[-1].prompt_token_ids, skip_special_tokens=False)
    assert "assistant\n<think>Hm, hm.</think>Yes." in prompt


@pytest.mark.parametrize(
    ("text", "extra", "reason", "sequence", "said"),
    [
        ("Paris.", {}, "end_turn", None, "Paris."),
        ("Paris is it.", {"max_tokens": 1}, "max_tokens", None, "Paris"),
        ("Paris is it.", {"stop_sequences": ["nothing", " it"]}, "stop_sequence", " it", "Paris is"),
        ("Paris is it.", {"max_tokens": 0}, "max_tokens", None, ""),
    ],
)
def test_why_it_stopped(
    ask: Ask, client: Any, text: str, extra: Any, reason: str, sequence: str | None, said: str
) -> None:
    client.texts = [text]
    whole = ask(lambda sdk: sdk.messages.create(**(HI | extra)))
    _, final = ask(lambda sdk: _streamed(sdk, **extra))
    for message in (whole, final):
        assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
        assert "".join(block.text for block in message.content) == said


def test_the_contexts_end_is_told_from_max_tokens(ask: Ask, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = client._tokens
    monkeypatch.setattr(client, "_tokens", lambda index, request: cut(index, request)[:3])
    monkeypatch.setattr(client, "_update", _ends_with_length(client._made))
    message = ask(lambda sdk: sdk.messages.create(**(HI | {"max_tokens": 10_000})))
    assert message.stop_reason == "model_context_window_exceeded"


def _ends_with_length(made: Callable[..., Any]) -> Callable[..., Any]:
    return lambda request, index, line, step: made(
        request, index, [line[step]], "length" if step == len(line) - 1 else None, step
    )


def test_a_cache_of_which_nothing_may_be_told(ask: Ask, client: Any, access: Access) -> None:
    client.cached_tokens, access.rules = 16, Rules(disclose=False)
    usage = ask(lambda sdk: sdk.messages.create(**HI)).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (len(client.opened[0].prompt_token_ids), 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "name"),
    [
        (Overloaded("full", 2.0), anthropic.OverloadedError, "overloaded_error"),
        (EngineDead("gone"), anthropic.ServiceUnavailableError, "api_error"),
        (OctavoError("odd"), anthropic.InternalServerError, "api_error"),
    ],
)
def test_an_error_before_the_first_event(
    ask: Ask, client: Any, stream: bool, error: Exception, kind: type[Exception], name: str
) -> None:
    client.error = error
    with pytest.raises(kind) as caught:
        ask(lambda sdk: sdk.messages.create(**HI, stream=stream))
    body: Any = caught.value.body  # type: ignore[attr-defined]
    assert body == {"type": "error", "error": {"type": name, "message": str(error)}, "request_id": None}


def test_an_error_in_a_stream(ask: Ask, client: Any) -> None:
    client.late_error, client.fail_after = OctavoError("the token was not a number"), 1
    assert _raw(ask)[-1][0] == "error"
    with pytest.raises(anthropic.APIStatusError, match="not a number"):
        ask(_streamed)


def test_errors_of_the_door_and_of_bodies(ask: Ask, access: Access) -> None:
    with pytest.raises(anthropic.BadRequestError, match="unknown field 'n'"):
        ask(lambda sdk: sdk.messages.create(**HI, extra_body={"n": 2}))
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        ask(lambda sdk: sdk.messages.create(**(HI | {"model": "huge"})))
    long = HI | {"messages": [{"role": "user", "content": "word, " * 500}]}
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        ask(lambda sdk: sdk.messages.create(**long))
    huge = HI | {"messages": [{"role": "user", "content": "word, " * 5000}]}
    with pytest.raises(anthropic.ContentTooLargeError, match="request_too_large"):
        ask(lambda sdk: sdk.messages.create(**huge))
    access.rules = Rules(Keys([KnownKey(Caller("alice"), sha256(b"other").digest())]))
    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        ask(lambda sdk: sdk.messages.create(**HI))
    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        ask(lambda sdk: sdk.messages.count_tokens(model="tiny", messages=HI["messages"]))
    access.rules = Rules(Keys([KnownKey(Caller("alice"), sha256(b"sk").digest())]))
    assert ask(lambda sdk: sdk.messages.create(**HI)).role == "assistant"  # by x-api-key
