"""Tools for models whose chat template does not know them: the form of Nous Hermes and Qwen, written as plain text.

The definitions go into the system message, calls into the assistant's text, and what tools return into a user's
message, so that every chat template renders them. Answers are read by the response template `hermes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_RESULTS = ("tool", "function")
_INTRODUCTION = """# Tools

You may call functions. They are defined here, one in each line, in <tools></tools>:
<tools>
{tools}
</tools>

To call a function, write its name and arguments as a JSON object in <tool_call></tool_call>:
<tool_call>
{{"name": FUNCTION, "arguments": {{ARGUMENT: VALUE, ...}}}}
</tool_call>
What it returns follows in <tool_response></tool_response>."""


def knows_tools(source: str) -> bool:
    """Whether a chat template renders tools."""
    return "tools" in source


def in_default_form(messages: Sequence[Any], tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    """At least one message, with tools, calls and results as text; what is malformed is left for others to refuse.

    Args:
        tools: may be empty: then there is only what was called before.
    """
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    text = _INTRODUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    first = plain[0]
    if isinstance(first, Mapping) and first.get("role") in ("system", "developer"):
        return [{**first, "content": _joined(first.get("content"), text)}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def _plain(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    if message.get("role") in _RESULTS:
        result = _joined("<tool_response>", message.get("content"), "</tool_response>", sep="\n")
        return {"role": "user", "content": result}
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**kept, "content": _joined(message.get("content"), *map(_call, calls), sep="\n")}


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(function.get("name"))}, "arguments": {text or "{}"}}}\n</tool_call>'


def _joined(*contents: Any, sep: str = "\n\n") -> Any:
    """Contents one after the other: a text, or parts where one of them is parts."""
    given = [content for content in contents if content]
    if all(isinstance(content, str) for content in given):
        return sep.join(given)
    parts: list[Any] = []
    for content in given:
        parts += content if isinstance(content, list) else [{"type": "text", "text": content}]
    return parts
