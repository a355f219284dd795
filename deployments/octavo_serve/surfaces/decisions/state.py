"""The state: what all questions of a request are about, as a chat, and as the prefix that their prompts share.

The question stands at the end of the last user's message, or in one of its own after any other. Input and question are
tokenised apart: the tokens of the one do not depend on the other.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import BadRequest
from octavo.text.default_form import in_default_form, knows_tools
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.chats import FEW, Chat, Message, render
from octavo_serve.api.custom_tools import arguments_of
from octavo_serve.api.threads import Threads
from octavo_serve.surfaces.decisions.schemas import (
    AssistantMessage,
    CallOutput,
    CustomCall,
    FunctionCall,
    SystemMessage,
    UserMessage,
)
from octavo_serve.surfaces.decisions.text import text_of

Item = UserMessage | SystemMessage | AssistantMessage | FunctionCall | CallOutput | CustomCall

_BREAK = "\n\n"
_NO_THINKING = {"enable_thinking": False, "thinking": False}
"""Template variables: the answer's first token is the label."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A rendered chat around the place of a question.

    Attributes:
        before: the state, which all prompts begin with.
        after: what follows the question, up to the answer.
    """

    before: str
    after: str


def chat_of(asked: str | Sequence[Item]) -> Chat:
    """The input as a chat.

    Raises:
        BadRequest: an output belongs to no call before it, or a part exceeds a bound.
    """
    if isinstance(asked, str):
        return _chat([{"role": "user", "content": asked}])
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, item in enumerate(asked):
        param = f"input[{number}]"
        if isinstance(item, FunctionCall | CustomCall):
            names[item.call_id] = _add_call(messages, item)
        elif isinstance(item, CallOutput):
            if item.call_id not in names:
                raise BadRequest(f"{param}.call_id {item.call_id!r:.80} is of no call before it", param)
            content, name = text_of(item.output, param), names[item.call_id]
            messages.append({"role": "tool", "tool_call_id": item.call_id, "name": name, "content": content})
        else:
            _add_message(messages, item.role, text_of(item.content, param))
            if isinstance(item, AssistantMessage) and item.phase is not None:
                messages[-1]["phase"] = item.phase
    return _chat(messages)


def _chat(messages: Sequence[dict[str, Any]]) -> Chat:
    return Chat(messages=[Message.model_validate(message) for message in messages], variables=_NO_THINKING)


def _add_message(messages: list[dict[str, Any]], role: str, content: str) -> None:
    """Add a message. Two of a user are one: many templates want users and assistants in turn."""
    if role == "user" and messages and messages[-1]["role"] == "user":
        messages[-1]["content"] += _BREAK + content
    else:
        messages.append({"role": role, "content": content})


def _add_call(messages: list[dict[str, Any]], item: FunctionCall | CustomCall) -> str:
    """Add a call to the assistant's message before it, or to one of its own; returns the name of what is called."""
    name = f"{item.namespace}.{item.name}" if item.namespace else item.name
    arguments = item.arguments if isinstance(item, FunctionCall) else arguments_of(item.input)
    call = {"id": item.call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)
    return name


async def framed(chat: Chat, tokenizer: Tokenizer, threads: Threads) -> Frame:
    """Render a chat with a place for a question.

    Raises:
        BadRequest: as `render`, or the template does not keep what the last message says.
    """
    mark = f"QUESTION{secrets.token_hex(8)}"
    if len(chat.messages) > FEW:
        messages = await threads.run(_marked, chat.messages, tokenizer, mark)
    else:
        messages = _marked(chat.messages, tokenizer, mark)
    marked = Chat(messages=messages, variables=chat.variables)
    before, found, after = (await render(marked, tokenizer, threads)).partition(mark)
    if not found or mark in after:
        raise BadRequest("the model's chat template does not write the last message as it is", "input")
    return Frame(before, after)


def _written(messages: Sequence[Message], tokenizer: Tokenizer) -> Sequence[Message]:
    """The messages, with calls as text for a template that knows none."""
    if knows_tools(tokenizer.chat_templates.get("default") or "") or not any(m.model_extra for m in messages):
        return messages
    plain = in_default_form([message.model_dump(exclude_unset=True) for message in messages], ())
    return [Message.model_validate(message) for message in plain]


def _marked(messages: Sequence[Message], tokenizer: Tokenizer, mark: str) -> list[Message]:
    """The messages with a mark where the question will be."""
    *others, last = _written(messages, tokenizer)
    if last.role == "user":
        return [*others, last.model_copy(update={"content": f"{last.content or ''}{_BREAK}{mark}"})]
    return [*others, last, Message(role="user", content=mark)]
