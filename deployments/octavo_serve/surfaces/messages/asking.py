"""Turns a Messages API's body into an `Asked`."""

from __future__ import annotations

from typing import Any

from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.bounds import Limits
from octavo_serve.api.chats import Chat
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.messages.schemas import MessagesRequest, PromptBody

_EFFORTS = {"xhigh": "high", "max": "high"}
"""Efforts that chat templates do not know."""


def ask(body: MessagesRequest, limits: Limits) -> Asked:
    """Check a body and turn it into an `Asked`.

    `max_tokens` is a limit alone: an answer may end earlier, where the context does.

    Raises:
        BadRequest: a value is out of its range, or two contradict each other.
    """
    sent = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k")}
    given: dict[str, Any] = {name: value for name, value in sent.items() if value is not None}
    given["stop"] = body.stop_sequences or None
    return Asked(
        kind="msg",
        model=body.model,
        content=chat_of(body),
        param="messages",
        params=SamplingParams(**given, max_tokens=body.max_tokens, structured_outputs=_structured(body)),
        given=given,
        add_special_tokens=False,  # chat templates write special tokens themselves
        session=(body.metadata and body.metadata.user_id) or "",
    )


def chat_of(body: PromptBody) -> Chat:
    """The chat that a prompt is made of.

    Raises:
        BadRequest: the tool to be called is none of those that are shown.
    """
    conversation, choice = body.conversation, body.tool_choice
    kind = choice.type if choice else "auto"
    names = {tool["function"]["name"] for tool in conversation.tools}
    if kind == "any" and not names:
        raise BadRequest("tool_choice asks for a call, but there are no tools: send tools", "tool_choice")
    if choice and kind == "tool" and choice.name not in names:
        raise BadRequest(f"tool_choice.name must name one of the tools, got {choice.name!r:.80}", "tool_choice.name")
    return Chat(
        messages=conversation.messages,
        tools=None if kind == "none" else conversation.tools or None,
        variables=_variables(body),
        continue_final_message=conversation.continues,
        one_call=bool(choice and choice.disable_parallel_tool_use),
        must_call=kind in ("any", "tool"),
        callable_tools=frozenset({str(choice.name)}) if choice and kind == "tool" else None,
        thinking_budget=body.thinking.budget_tokens if body.thinking and body.thinking.type == "enabled" else None,
        must_think=False,
    )


def _variables(body: PromptBody) -> dict[str, Any]:
    """Template variables, under the names that templates use. A template that reads none of them is left alone: clients
    send these whatever the model is, and they ask for no more than it can do."""
    variables: dict[str, Any] = {}
    if body.thinking is not None:
        variables["thinking"] = variables["enable_thinking"] = body.thinking.type != "disabled"
    if body.output_config is not None and (effort := body.output_config.effort) is not None:
        variables["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return variables


def _structured(body: PromptBody) -> StructuredOutputs | None:
    inner = body.output_config.format if body.output_config else None
    if inner and body.output_format:
        raise BadRequest("send output_config.format or output_format, not both", "output_format")
    if found := inner or body.output_format:
        param = "output_config.format" if inner else "output_format"
        return StructuredOutputs(json=found.schema_, param=f"{param}.schema")
    return None
