"""Chats as chat templates read them, and their rendering to prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from octavo.errors import BadRequest
from octavo.text.chat import check_chat, render_chat
from octavo.text.responses.families import AUTO, template_of
from octavo.text.template import QUICK_TEXT, NotQuick, fits
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.bounds import MAX_PARTS, MAX_ROLE
from octavo_serve.api.custom_tools import arguments_of, as_function
from octavo_serve.api.fields import SAYS_SOMETHING, AtMost, Part
from octavo_serve.api.threads import Threads

FEW = 256
"""Messages that take about a millisecond to unpack."""


class Message(BaseModel):
    """One chat message; fields besides role and content go to the chat template as they are."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=SAYS_SOMETHING)

    role: str = Field(min_length=1, max_length=MAX_ROLE)
    content: Annotated[str | Annotated[list[Part], AtMost(MAX_PARTS)], Field(union_mode="left_to_right")] | None = None


@dataclass(slots=True, kw_only=True)
class Chat:
    """A chat, and how the prompt made of it ends (see `octavo.text.chat.render_chat`).

    Attributes:
        variables: further template variables, with the client's names.
        reasoning: template variables about reasoning; a request is refused if the template does not read them.
        custom: names of the tools that are custom ones -> the format of their input, if they have one.
        tool_fields: names of tools -> the request's field with their schema or format, for errors; a chat's by default.
        one_call: an answer calls one tool at most.
        must_call: an answer calls a tool.
        callable_tools: names of those that may be called; None: all of them.
        thinking_budget: tokens that the model may think; None: as many as it likes.
        thinking_param: the request's field that says so, for errors.
        effort_param: the request's field with an effort, for errors.
        must_think: a model that does not think refuses a budget; otherwise it spends none of it.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None
    reasoning: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    custom: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    tool_fields: Mapping[str, str] = field(default_factory=dict)
    one_call: bool = False
    must_call: bool = False
    callable_tools: frozenset[str] | None = None
    thinking_budget: int | None = None
    thinking_param: str = "thinking"
    effort_param: str = "reasoning_effort"
    must_think: bool = True

    @property
    def ending(self) -> dict[str, bool]:
        go_on, answer = self.continue_final_message, self.add_generation_prompt
        return {"add_generation_prompt": not go_on if answer is None else answer, "continue_final_message": go_on}

    def unpacked(self) -> list[dict[str, Any]]:
        """The messages as plain dicts; 4 us each."""
        return [message.model_dump(exclude_unset=True) for message in self.messages]

    def check(self) -> None:
        """Refuse errors that can be found while the model loads. A long chat is checked only when it is rendered.

        Raises:
            BadRequest: a message is malformed, or settings contradict each other.
        """
        if len(self.messages) <= FEW:
            check_chat(self.unpacked(), chat_template_kwargs=self.variables, **self.ending)


async def render(chat: Chat, tokenizer: Tokenizer, threads: Threads, response_template: str = AUTO) -> str:
    """The prompt's text. Short chats with usual templates are rendered in place, all others in `threads`.

    Args:
        response_template: the model's setting; it says whether the model thinks.

    Raises:
        BadRequest: as `render_chat`, or if the template does not read the request's reasoning variables.
    """
    if chat.reasoning:
        reasons = (template := template_of(tokenizer, response_template)) is not None and template.reasons
        source = "".join(tokenizer.chat_templates.values())
        check_template_reads(chat.reasoning, source, reasons=reasons, effort_param=chat.effort_param)
    work = partial(_rendered, tokenizer, chat)
    if len(chat.messages) <= FEW and fits([(m.content, m.model_extra) for m in chat.messages], QUICK_TEXT):
        with contextlib.suppress(NotQuick):
            return work(quickly=True)
    return await threads.run(work, quickly=False)


def _rendered(tokenizer: Tokenizer, chat: Chat, *, quickly: bool) -> str:
    return render_chat(
        tokenizer,
        chat.unpacked(),
        tools=chat.tools or None,
        chat_template_kwargs={**chat.reasoning, **(chat.variables or {})},
        quickly=quickly,
        **chat.ending,
    )


EFFORTS: Mapping[str, float] = {"minimal": 0.1, "low": 0.25, "medium": 0.5, "high": 0.75, "xhigh": 0.9}
"""Of a model that thinks but whose chat template reads no efforts: the share of an answer's tokens that the thinking
may take, by the effort."""


def check_template_reads(
    variables: Mapping[str, Any], source: str, *, reasons: bool = False, effort_param: str = "reasoning_effort"
) -> None:
    """Refuse reasoning variables that the chat template does not read, unless they ask for the default behaviour.

    Args:
        reasons: the model thinks, so that an effort can be a budget, and nothing has to be switched on.

    Raises:
        BadRequest: a variable would have no effect.
    """
    effort = variables.get("reasoning_effort", "medium")
    if effort != "medium" and "reasoning_effort" not in source and not (reasons and effort in EFFORTS):
        raise BadRequest("this model has no reasoning effort to choose: leave it out", effort_param)
    if variables.get("thinking") and "thinking" not in source and not reasons:
        raise BadRequest("this model's thinking cannot be switched on: leave it out", "thinking")


# ── custom tools ──


def as_function_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool as the chat template reads it."""
    if tool["type"] != "custom":
        return tool
    custom = tool["custom"]
    return as_function(custom["name"], custom.get("description"), custom.get("format"))


def as_functions(message: Message) -> Message:
    """A message whose calls of custom tools are calls of functions; what is malformed is left for others to refuse."""
    calls = (message.model_extra or {}).get("tool_calls")
    if not isinstance(calls, list) or not any(
        isinstance(call, Mapping) and call.get("type") == "custom" for call in calls
    ):
        return message
    return message.model_copy(update={"tool_calls": [_as_function_call(call) for call in calls]})


def _as_function_call(call: Any) -> Any:
    custom = call.get("custom") if isinstance(call, Mapping) and call.get("type") == "custom" else None
    if not isinstance(custom, Mapping):
        return call
    function = {"name": custom.get("name"), "arguments": arguments_of(custom.get("input"))}
    return {"id": call.get("id"), "type": "function", "function": function}
