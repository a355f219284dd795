"""Renders OpenAI chat messages with a model's Jinja chat template, as transformers does (utils/chat_template_utils.py).

Two steps happen before the template sees the messages, both because OpenAI's clients send what templates do not expect:
contents given as parts become one string (parts joined by a newline, as in vLLM), and tool-call arguments given as a
JSON string become the object they spell. Everything else is passed through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import BadRequest
from octavo.text.tokenizer import Tokenizer

_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
_TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The prompt's text; encode it with `add_special_tokens=False`, for the template writes them itself.

    Args:
        messages: OpenAI's: {"role": any string, "content": string, None or text parts, ...}. The role "developer" is
            rendered as "system" by templates that do not mention it.
        tools: OpenAI's tool definitions, for templates that know them.
        add_generation_prompt: end with the header of the assistant's turn.
        continue_final_message: leave the last message open, for the model to go on with it.
        chat_template_kwargs: further variables of the template, such as `enable_thinking`.

    Raises:
        BadRequest: a message is malformed, the model has no template, or the template refuses the messages.
    """
    if continue_final_message and add_generation_prompt:
        raise BadRequest(
            "continue_final_message needs add_generation_prompt to be false: the last message is either continued or "
            "answered",
            "continue_final_message",
        )
    source = _template_source(tokenizer, with_tools=bool(tools))
    chat = _plain_messages(messages, knows_developer="developer" in source)
    variables = {**tokenizer.special_tokens, **_checked_kwargs(chat_template_kwargs or {})}
    if continue_final_message:
        final = _mark_end(chat, source)
    rendered = _render(
        source,
        messages=chat,
        tools=list(tools) if tools else None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return _cut_at_mark(rendered, final) if continue_final_message else rendered


def _template_source(tokenizer: Tokenizer, *, with_tools: bool) -> str:
    templates = tokenizer.chat_templates
    source = templates.get("tool_use") if with_tools else None
    source = source or templates.get("default")
    if source is None:
        raise BadRequest(
            "this model has no chat template, so it cannot answer chat messages: send a prompt to /v1/completions, or "
            "add a chat_template to the model's tokenizer_config.json"
        )
    return source


def _checked_kwargs(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in kwargs:
        if name in _RESERVED:
            raise BadRequest(
                f"chat_template_kwargs must not hold {name!r}: it is a field of the request", "chat_template_kwargs"
            )
    return kwargs


# ── messages ──


def _plain_messages(messages: Sequence[Mapping[str, Any]], *, knows_developer: bool) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise BadRequest("messages must be a list of at least one message", "messages")
    return [_plain_message(message, f"messages[{i}]", knows_developer) for i, message in enumerate(messages)]


def _plain_message(message: Mapping[str, Any], where: str, knows_developer: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRequest(f"{where} must be an object with a role and a content, got {message!r:.80}", "messages")
    if not isinstance(message.get("role"), str):
        raise BadRequest(f"{where}.role must be a string such as 'user', got {message.get('role')!r:.80}", "messages")
    # fields that are None are left out: templates test whether a field is there (transformers does the same)
    plain = {name: value for name, value in message.items() if value is not None}
    if plain["role"] == "developer" and not knows_developer:
        plain["role"] = "system"
    if "content" not in plain and not plain.get("tool_calls"):
        raise BadRequest(f"{where}.content is required", "messages")
    if "content" in plain:
        plain["content"] = _plain_content(plain["content"], f"{where}.content")
    if "tool_calls" in plain:
        plain["tool_calls"] = _plain_tool_calls(plain["tool_calls"], f"{where}.tool_calls")
    return _with_reasoning(plain)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message's reasoning goes by three names; templates read the first or, gpt-oss, the second."""
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _plain_content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a string, null or a list of parts, got {content!r:.80}", "messages")
    return "\n".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise BadRequest(f'{where} must be an object such as {{"type": "text", "text": "..."}}', "messages")
    field = _TEXT_FIELDS.get(kind)
    if field is None:
        raise BadRequest(f"{where} is of type {kind!r}; this model reads text only", "messages")
    if not isinstance(part.get(field), str):
        raise BadRequest(f"{where}.{field} must be a string", "messages")
    return str(part[field])


def _plain_tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRequest(f"{where} must be a list of objects", "messages")
    return [_plain_tool_call(call) for call in calls]


def _plain_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return dict(call)
    if not isinstance(arguments, dict):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}


# ── continuing the last message ──


def _mark_end(chat: list[dict[str, Any]], source: str) -> str:
    """Put a mark after the last message's content; returns that content."""
    content = chat[-1].get("content")
    if not isinstance(content, str) or "content" not in source:
        raise BadRequest("continue_final_message needs a last message with a text content to go on with", "messages")
    chat[-1]["content"] = content + _CONTINUE_HERE
    return content


def _cut_at_mark(rendered: str, final: str) -> str:
    """Drop everything from the mark on, and the spaces before it if the template trims contents."""
    mark = _CONTINUE_HERE.strip()
    if mark not in rendered or final.strip() not in rendered:
        raise BadRequest(
            "continue_final_message does not work here: the model's chat template changes the last message", "messages"
        )
    cut = rendered.rindex(mark)
    return rendered[:cut] if rendered.startswith(_CONTINUE_HERE, cut) else rendered[:cut].rstrip()


# ── Jinja ──


def _render(source: str, **variables: Any) -> str:
    try:
        return _compiled(source).render(**variables)
    except jinja2.TemplateError as error:
        raise BadRequest(f"the model's chat template refuses these messages: {error.message}", "messages") from error
    except Exception as error:  # the template is a program: it may meet a field of a shape it did not expect
        raise BadRequest(f"the model's chat template cannot render these messages: {error}", "messages") from error


@lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


class _GenerationTag(Extension):
    """{% generation %}...{% endgeneration %} marks the assistant's text for training; here it renders as its body."""

    tags = {"generation"}  # noqa: RUF012 - how jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - the name templates may use
    return datetime.now().strftime(format)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without jinja2's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
