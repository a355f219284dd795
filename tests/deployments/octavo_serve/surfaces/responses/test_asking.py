"""What a body asks for, and the sentences that refuse what is not done."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.constraint import StructuredOutputs
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.chats import Chat
from octavo_serve.surfaces.responses.asking import ask
from octavo_serve.surfaces.responses.schemas import ResponsesRequest

LOOK_UP = {"type": "function", "name": "look_up"}
PATCH = {"type": "custom", "name": "apply_patch"}


def asked(**body: Any) -> Any:
    return ask(parse(ResponsesRequest, {"input": "Hello"} | body), Limits())


def chat(**body: Any) -> Chat:
    content = asked(**body).content
    assert isinstance(content, Chat)
    return content


def test_sampling() -> None:
    found = asked(temperature=0.5, top_p=0.9, top_k=3, seed=7, stop="x", max_output_tokens=5, prompt_cache_key="k")
    params = found.params
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.stop) == (0.5, 0.9, 3, 7, ["x"])
    assert (found.max_tokens, params.max_tokens, found.session) == (5, 5, "k")
    assert found.given.keys() == {"temperature", "top_p", "top_k", "seed", "stop"}
    assert asked().params.max_tokens is None


def test_a_format_is_a_constraint() -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    assert asked(text={"format": form}).params.structured_outputs == StructuredOutputs(
        json=schema, strict=True, param="text.format.schema"
    )
    found = asked(text={"format": {"type": "json_object"}}).params.structured_outputs
    assert found == StructuredOutputs(json_object=True, param="text.format")
    for free in ({}, {"format": {"type": "text"}}, {"format": None, "verbosity": "medium"}):
        assert asked(text=free).params.structured_outputs is None


def test_the_choice_of_tools() -> None:
    tools = {"tools": [LOOK_UP, PATCH]}
    assert chat(**tools, tool_choice="none").tools is None
    assert len(chat(**tools).tools or ()) == 2
    for choice in (None, "auto"):
        found = chat(**tools, tool_choice=choice)
        assert (found.must_call, found.callable_tools) == (False, None)
    assert chat(**tools, tool_choice="required").must_call
    for kind, name in (("function", "look_up"), ("custom", "apply_patch")):
        found = chat(**tools, tool_choice={"type": kind, "name": name})
        assert (found.one_call, found.must_call, found.callable_tools) == (True, True, {name})
    for mode in ("auto", "required"):
        found = chat(**tools, tool_choice={"type": "allowed_tools", "mode": mode, "tools": [LOOK_UP]})
        assert (found.must_call, found.callable_tools) == (mode == "required", {"look_up"})
    assert chat(**tools, parallel_tool_calls=False).one_call


def test_verbosity_is_for_the_model(api: Any, client: Any) -> None:
    answer = api.create(text={"verbosity": "low"}, instructions="Be kind.")
    assert answer["text"]["verbosity"] == "low"
    assert "Be kind.\n\nKeep your answers short." in client.tokenizer.decode(client.opened[-1].prompt_token_ids)


def test_reasoning_is_for_the_template() -> None:
    assert chat(reasoning={"effort": "low", "summary": "auto"}).reasoning == {"reasoning_effort": "low"}
    assert chat(reasoning={"effort": "low"}).effort_param == "reasoning.effort"
    assert chat(reasoning={"effort": "none"}).reasoning == {"enable_thinking": False, "thinking": False}
    assert (chat(reasoning={}).reasoning, chat(reasoning={"max_tokens": 9}).thinking_budget) == ({}, 9)


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ({"truncation": "auto"}, "truncation", "nothing is dropped"),
        ({"service_tier": "flex"}, "service_tier", "one tier"),
        ({"text": {"verbosity": "huge"}}, "text.verbosity", "medium"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "must be a JSON schema"),
        ({"text": {"form": 1}}, "text.form", "format"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "xhigh"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens", "at least 0"),
        ({"reasoning": {"max_tokens": 9}}, "reasoning.max_tokens", "does not think"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary", "auto"),
        ({"include": ["all"]}, "include", "reasoning.encrypted_content"),
        ({"top_logprobs": 2}, "top_logprobs", "include"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs", "20"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"prompt": {"id": "p"}}, "prompt", "not supported"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "not supported"),
        ({"background": True, "store": False}, "background", "store"),
        ({"stream_options": {}}, "stream_options", "stream"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "no"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"max_tool_calls": 0}, "max_tool_calls", "at least 1"),
        ({"temperature": 101}, "temperature", "100"),
        ({"messages": []}, "messages", "unknown"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": "any"}, "tool_choice", "must be"),
        ({"tools": [LOOK_UP], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "none of the tools"),
        ({"tools": [LOOK_UP], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice", "list"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused(api: Any, body: dict[str, Any], param: str, sentence: str) -> None:
    message, field = api.refused(**body)
    assert sentence in message
    assert field == param
