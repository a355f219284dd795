"""The format is Hugging Face's: transformers reads the built-in templates, and others are read as it reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_parsing import parse_response

from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.families import NAMES, builtin
from octavo.text.responses.parser import ResponseParser, properties
from octavo.text.responses.template import load_template

TOOLS = [{"name": "look_up", "parameters": {"properties": {"what": {"type": "string"}, "n": {"type": "integer"}}}}]
CALL = {"name": "look_up", "arguments": {"what": "x", "n": 3}}
FUNCTION = {"type": "function", "function": "{content}"}
NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
END = {"content": {"close": "<|end|>"}}

MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "json": (
        {
            "thinking": {"open": "<think>", "close": "</think>"},
            "tool_calls": {
                "open": "<call>",
                "close": "</call>",
                "repeats": True,
                "content": "json",
                "transform": FUNCTION,
            },
            **END,
        },
        f"<think>\nHm.\n</think>\n\n<call>{json.dumps(CALL)}</call><call>{json.dumps(CALL)}</call>So.<|end|>",
    ),
    "tags": (
        {
            "tool_calls": {
                "open_pattern": r"<call>\s*<function=(?P<name>\w+)>",
                "close": "</call>",
                "repeats": True,
                "content": "xml-inline",
                "content_args": {
                    "tag_pattern": r"<parameter=(?P<key>\w+)>\s*(?P<value>.*?)\s*</parameter>",
                    "value_parser": {"name": "json", "args": {"allow_non_json": True}},
                },
                "transform": NAMED,
            },
            **END,
        },
        "<call>\n<function=look_up>\n<parameter=what>\nx\n</parameter><parameter=n> 3 </parameter>\n</function></call>",
    ),
    "a list of calls": (
        {
            "tool_calls": {
                "open": ["<actions>", "<action>"],
                "close": ["</actions>", "</action>"],
                "content": "json",
                "transform_each": True,
                "transform": {"type": "function", "function": {"name": "{tool}", "arguments": "{given}"}},
            },
            "content": {"open": "<says>", "close": "</says>"},
        },
        f'<says> So. </says><actions>[{{"tool": "look_up", "given": {json.dumps(CALL["arguments"])}}}]</actions>',
    ),
    "a dialect": (
        {
            "tool_calls": {
                "open_pattern": r"<call>(?P<name>\w+)(?=\{)",
                "close": "</call>",
                "repeats": True,
                "content": "json",
                "content_args": {"unquoted_keys": True, "string_delims": [["<q>", "<q>"]]},
                "transform": NAMED,
            },
            **END,
        },
        "So. <call>look_up{what:<q>x<q>,n:3}</call>",
    ),
}


def read(template: BoundTemplate, text: str) -> dict[str, Any]:
    """The message in transformers' form; texts without the spaces around them, which it always strips."""
    parser = ResponseParser(template, properties(TOOLS))
    message: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": []}
    for part in [*(part for char in text for part in parser.push(char)), *parser.finish()]:
        if part.kind == "call":
            message["tool_calls"].append([part.text, ""])
        elif part.kind == "arguments":
            message["tool_calls"][-1][1] += part.text
        else:
            message[part.kind] += part.text
    calls = [(name, json.loads(arguments)) for name, arguments in message["tool_calls"]]
    return {"content": message["content"].strip(), "reasoning": message["reasoning"].strip(), "calls": calls}


def by_transformers(spec: dict[str, Any], text: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": tool} for tool in TOOLS]
    message = parse_response(text, spec, prefix="", tools=tools)
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return {
        "content": message.get("content", ""),
        "reasoning": message.get("thinking", ""),
        "calls": [(function["name"], function["arguments"]) for function in functions],
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_template_is_read_as_in_transformers(name: str) -> None:
    fields, text = MODELS[name]
    spec = {"version": 1, "defaults": {"role": "assistant"}, "start_anchor": "<|start|>", "fields": fields}
    found = read(BoundTemplate(load_template(spec), {}), text)
    assert found == by_transformers(spec, text)
    assert found["calls"][0] == ("look_up", CALL["arguments"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pythonic"])  # which transformers has not
def test_transformers_takes_the_built_in_templates(name: str) -> None:
    spec = builtin_spec(name)
    assert by_transformers(spec, "")["calls"] == []
    assert read(BoundTemplate(builtin(name), {}), "")["calls"] == []


def builtin_spec(name: str) -> dict[str, Any]:
    from octavo.text.responses import families

    spec: dict[str, Any] = json.loads((families._FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    spec.pop("call_ids", None)
    spec.pop("written", None)
    return spec
