"""Renders OpenAI chat messages with a model's Jinja chat template, as transformers does (utils/chat_template_utils.py).

A template is written for one shape of message, but OpenAI's clients send several. So a template is given values that
can be used in both shapes:

* a content given as parts stays a list if the template looks into parts, and is joined by newlines otherwise (as in
  vLLM); a plain string is one part to a loop over parts;
* a content that is null or absent is undefined, as in transformers, but can be concatenated with a text;
* a tool call's arguments are OpenAI's JSON string where a template writes or concatenates them, and the parsed object
  everywhere else.

Everything else is passed through unchanged. `template` runs templates, and stops those that take too long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import BadRequest
from octavo.text.default_form import in_default_form, knows_tools
from octavo.text.template import QUICK_TEXT, NotQuick, Template, compiled, fits, is_compiled
from octavo.text.template_process import render_apart
from octavo.text.template_values import Arguments, OnePart, TemplateMessage
from octavo.text.tokenizer import Tokenizer

_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
_TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING = ("reasoning_content", "thinking", "reasoning")
_INSTEAD_OF_CONTENT = ("tool_calls", "refusal", *_REASONING)
_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    quickly: bool = False,
) -> str:
    """The prompt's text. Encode it with `add_special_tokens=False`: the template writes the special tokens itself.

    Args:
        messages: OpenAI's: {"role": any string, "content": string, None or text parts, ...}. The role "developer" is
            rendered as "system" by templates that do not mention it.
        tools: OpenAI's tool definitions; where the template does not know any, they are written in the default form.
        add_generation_prompt: end with the header of the assistant's turn.
        continue_final_message: leave the last message open, so that the model continues it.
        chat_template_kwargs: further variables of the template, such as `enable_thinking`.
        quickly: for use on an event loop: give up if it would take more than a few milliseconds.

    Raises:
        BadRequest: a message is malformed, the model has no template, the template refuses the messages, or it does
            not end within the bounds of `template_process`.
        NotQuick: with `quickly`, if it would take longer; call it again in a thread without `quickly`.
    """
    _check_ending(add_generation_prompt, continue_final_message)
    small = fits((messages, tools, chat_template_kwargs), QUICK_TEXT)
    source = _template_source(tokenizer, with_tools=bool(tools))
    if quickly and not (small and is_compiled(source)):
        raise NotQuick
    template = compiled(source)
    messages = _checked_messages(messages)
    if not knows_tools(source) and (tools or "tool" not in source):
        messages = in_default_form(messages, tools or ())
    chat = _plain_messages(messages, template)
    variables: dict[str, Any] = {
        **tokenizer.special_tokens,
        **_checked_kwargs(chat_template_kwargs or {}),
        "tools": list(tools) if tools else None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    final = _mark_end(chat, template) if continue_final_message else ""
    variables["messages"] = chat
    try:
        rendered = template.render_quickly(variables) if small else render_apart(template.source, variables)
    except NotQuick:
        if quickly:
            raise
        rendered = render_apart(template.source, variables)
    return _cut_at_mark(rendered, final) if continue_final_message else rendered


def check_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Refuse what `render_chat` refuses whatever the template is, so that a request need not wait for its model to
    load.

    Raises:
        BadRequest: as `render_chat`.
    """
    _check_ending(add_generation_prompt, continue_final_message)
    _checked_kwargs(chat_template_kwargs or {})
    _plain_messages(_checked_messages(messages), compiled("{{ messages }}"))


def _check_ending(add_generation_prompt: bool, continue_final_message: bool) -> None:
    if continue_final_message and add_generation_prompt:
        raise BadRequest(
            "continue_final_message needs add_generation_prompt to be false: the last message is either continued or "
            "answered",
            "continue_final_message",
        )


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


def _checked_messages(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages, whose calls all name a function and stand in `tool_calls`."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise BadRequest("messages must be a list of at least one message", "messages")
    return [_checked_calls(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked_calls(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        return message
    if (calls := message.get("tool_calls")) is not None:
        _check_calls(calls, f"{where}.tool_calls")
    elif (call := message.get("function_call")) is not None:  # as OpenAI's older clients send it
        _check_calls([{"function": call}], f"{where}.function_call")
        others = {name: value for name, value in message.items() if name != "function_call"}
        return {**others, "tool_calls": [{"type": "function", "function": call}]}
    return message


def _check_calls(calls: Any, where: str) -> None:
    """Refuse calls that are none; a function's name may stand in the call itself, as transformers writes it."""
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRequest(f"{where} must be a list of objects", "messages")
    for call in calls:
        called = call.get("function", call)
        if not isinstance(called, Mapping) or not isinstance(called.get("name"), str):
            example = '{"type": "function", "function": {"name": "...", "arguments": "{}"}}'
            raise BadRequest(f"{where} must hold calls such as {example}, got {call!r:.80}", "messages")


def _plain_messages(messages: Sequence[Mapping[str, Any]], template: Template) -> list[TemplateMessage]:
    return [_plain_message(message, f"messages[{i}]", template) for i, message in enumerate(messages)]


def _plain_message(message: Mapping[str, Any], where: str, template: Template) -> TemplateMessage:
    if not isinstance(message, Mapping):
        raise BadRequest(f"{where} must be an object with a role and a content, got {message!r:.80}", "messages")
    if not isinstance(message.get("role"), str):
        raise BadRequest(f"{where}.role must be a string such as 'user', got {message.get('role')!r:.80}", "messages")
    # fields that are None are left out: templates test whether a field is there (transformers does the same)
    plain = TemplateMessage((name, value) for name, value in message.items() if value is not None)
    if plain["role"] == "developer" and "developer" not in template.source:
        plain["role"] = "system"
    if "content" in plain:
        plain["content"] = _plain_content(plain["content"], f"{where}.content", template.looks_into_parts)
    elif not any(plain.get(name) for name in _INSTEAD_OF_CONTENT):
        raise BadRequest(f"{where}.content is required", "messages")
    if "tool_calls" in plain:
        plain["tool_calls"] = [_plain_tool_call(call) for call in plain["tool_calls"]]
    return _with_reasoning(plain)


def _with_reasoning(message: TemplateMessage) -> TemplateMessage:
    """Clients send a message's reasoning under three names; templates read the first of them, gpt-oss's the second."""
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    return TemplateMessage({"thinking": reasoning, **message, "reasoning_content": reasoning})


def _plain_content(content: Any, where: str, as_parts: bool) -> Any:
    if isinstance(content, str):
        return OnePart(content) if as_parts else content
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a string, null or a list of parts, got {content!r:.80}", "messages")
    texts = [_part_text(part, f"{where}[{i}]") for i, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts] if as_parts else "\n".join(texts)


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


def _plain_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return dict(call)
    return {**call, "function": {**function, "arguments": _plain_arguments(function.get("arguments"))}}


def _plain_arguments(arguments: Any) -> Any:
    """Parse OpenAI's JSON string. A string that is not a JSON object stays as it is; no string means no arguments."""
    text = "" if arguments is None else arguments
    if not isinstance(text, str):
        return arguments
    try:
        values = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return text
    return Arguments(values, text) if isinstance(values, dict) else text


# ── continuing the last message ──


def _mark_end(chat: list[TemplateMessage], template: Template) -> str:
    """Append a mark to the last message's content, or to its last part; returns that text without the mark."""
    content = chat[-1].get("content")
    if not content or "content" not in template.source:
        raise BadRequest("continue_final_message needs a last message with a text content to go on with", "messages")
    if isinstance(content, list):
        last = content[-1]["text"]
        chat[-1]["content"] = [*content[:-1], {"type": "text", "text": last + _CONTINUE_HERE}]
        return str(last)
    chat[-1]["content"] = type(content)(content + _CONTINUE_HERE)
    return str(content)


def _cut_at_mark(rendered: str, final: str) -> str:
    """Drop the mark and everything after it, and the spaces before it if the template trims contents."""
    mark = _CONTINUE_HERE.strip()
    if mark not in rendered or final.strip() not in rendered:
        raise BadRequest(
            "continue_final_message does not work here: the model's chat template changes the last message", "messages"
        )
    cut = rendered.rindex(mark)
    return rendered[:cut] if rendered.startswith(_CONTINUE_HERE, cut) else rendered[:cut].rstrip()
