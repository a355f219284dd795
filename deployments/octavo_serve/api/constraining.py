"""What a request's answer must keep to, as its model writes it: an answer, calls, a budget for thinking."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from octavo.constraint import Grammar
from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo.text.grammars.calls import CallableTool
from octavo.text.grammars.constrained import constrained, is_constrained
from octavo.text.grammars.messages import MessageGrammar
from octavo.text.responses.bound import BoundTemplate
from octavo_serve.api.chats import EFFORTS, Chat
from octavo_serve.api.custom_tools import lark_of, parameters
from octavo_serve.api.model import ServedModel

MAX_MADE = 64
"""Grammars of tools that are kept; each has at most `octavo.constraint.MAX_GRAMMAR` characters."""

USUAL_TOKENS = 4096
"""Tokens of an answer of which an effort is a share, where neither the request nor the model's settings bound it."""


def constrains(params: SamplingParams, chat: Chat | None) -> bool:
    """Whether `constrain` makes anything of a request."""
    if is_constrained(params):
        return True
    return chat is not None and bool(
        chat.tools or chat.must_call or chat.thinking_budget is not None or chat.reasoning.get("reasoning_effort")
    )


def constrain(
    params: SamplingParams, chat: Chat | None, model: ServedModel, template: BoundTemplate | None, prompt: str
) -> SamplingParams:
    """Parameters that an engine follows. CPU work, up to 0.2 s; a schema that is new takes a few ms.

    Args:
        chat: None for prompts that are no chat.
        template: how the chat's answers are read; None where they are content and nothing else.
        prompt: what the model's template made of the chat.

    Raises:
        BadRequest: a grammar or schema is refused, or the model cannot do what is asked for.
    """
    if chat is None or template is None:
        if chat is not None:
            _refuse(chat)
        return constrained(params, model.tokenizer)
    wanted = params.structured_outputs
    message = MessageGrammar(template, model.tokenizer.eos_token_ids, prompt)
    tools = callable_tools(chat)
    grammar: Grammar | None = None
    if chat.must_call:
        grammar = message.forced(tools, many=not chat.one_call)
    elif wanted is not None:
        grammar = message.answer(wanted, tools, many=not chat.one_call)
    elif tools:
        grammar = _begun(message, template, tools, many=not chat.one_call)
    params = dataclasses.replace(params, structured_outputs=None, grammar=grammar)
    budget = _budget(chat, params, model, template)
    if budget is not None:
        params.thinking = message.thinking(budget, model.tokenizer)
    return constrained(params, model.tokenizer)


def callable_tools(chat: Chat) -> list[CallableTool]:
    """The tools of a chat that may be called."""
    found = []
    for number, tool in enumerate(chat.tools or ()):
        function = tool["function"]
        if chat.callable_tools is None or function["name"] in chat.callable_tools:
            found.append(_callable(function, number, chat))
    return found


def _callable(function: Mapping[str, Any], number: int, chat: Chat) -> CallableTool:
    name = function["name"]
    if name in chat.custom:
        param = chat.tool_fields.get(name, f"tools.{number}.custom.format")
        form = chat.custom[name]
        return CallableTool(
            name=name,
            parameters=parameters(form),
            input_grammar=lark_of(form),
            custom=True,
            strict=True,
            param=param,
        )
    return CallableTool(
        name=name,
        parameters=_mapping(function.get("parameters")),
        strict=bool(function.get("strict")),
        param=chat.tool_fields.get(name, f"tools.{number}.function.parameters"),
    )


def _begun(
    message: MessageGrammar, template: BoundTemplate, tools: list[CallableTool], *, many: bool
) -> Grammar | None:
    """As `MessageGrammar.begun`, or what was made before: a chat has the same tools turn after turn.

    20 of them take 24 ms in which no other thread runs.
    """
    try:
        key = template, blake2b(msgspec.json.encode(tools)).digest(), many
    except UnicodeEncodeError:  # half of a surrogate pair: whoever makes the grammar refuses it
        return message.begun(tools, many=many)
    with _lock:
        if key in _made:
            _made.move_to_end(key)
            return _made[key]
    grammar = message.begun(tools, many=many)
    with _lock:
        _made[key] = grammar
        if len(_made) > MAX_MADE:
            _made.popitem(last=False)
    return grammar


_made: OrderedDict[tuple[BoundTemplate, bytes, bool], Grammar | None] = OrderedDict()
_lock = threading.Lock()


def _mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _budget(chat: Chat, params: SamplingParams, model: ServedModel, template: BoundTemplate) -> int | None:
    """Tokens for the thinking: those asked for, or an effort's share where the chat template does not read efforts."""
    if chat.thinking_budget is not None:
        if template.reasons:
            return chat.thinking_budget
        _refuse_budget(chat)
        return None
    effort = str(chat.reasoning.get("reasoning_effort"))
    if not template.reasons or effort not in EFFORTS or _reads_efforts(model):
        return None
    return int(EFFORTS[effort] * (params.max_tokens or model.defaults.max_tokens or USUAL_TOKENS))


def _reads_efforts(model: ServedModel) -> bool:
    return any("reasoning_effort" in source for source in model.tokenizer.chat_templates.values())


def _refuse(chat: Chat) -> None:
    """Refuse what a model cannot do whose answers are content and nothing else."""
    if chat.must_call:
        raise BadRequest("this model's answers are not read for calls, so none can be forced", "tool_choice")
    _refuse_budget(chat)


def _refuse_budget(chat: Chat) -> None:
    if chat.thinking_budget is not None and chat.must_think:
        raise BadRequest("this model does not think before it answers: leave the budget out", chat.thinking_param)
