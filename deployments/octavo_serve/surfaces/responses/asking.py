"""Turns a body of /v1/responses into an `Asked`; what is kept of earlier responses comes to it in `recalling`."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.bounds import MAX_THINKING, Limits
from octavo_serve.api.chats import Chat
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.openai.schemas import NOT_SUPPORTED
from octavo_serve.surfaces.openai.structured import json_schema
from octavo_serve.surfaces.responses.items import Item
from octavo_serve.surfaces.responses.schemas import EFFORTS, INCLUDABLE, Response, ResponsesRequest, TurnBody
from octavo_serve.surfaces.responses.tools import Tools, choice_of, tools_of

SEALED, LOGPROBS = INCLUDABLE[-2:]
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "stop",
)  # fmt: skip
"""Fields that `SamplingParams` has too, with the same meaning."""
VERBOSITIES = {"low": "Keep your answers short.", "medium": "", "high": "Answer in detail."}
"""`text.verbosity` -> what the instructions say of it: the models here have no other way to know."""


@dataclass(slots=True, kw_only=True)
class Turn:
    """What the writer of a response must know, beside its job.

    Attributes:
        key: what its id, and its items' ids, hold.
        tools: those of the request.
        items: its input, in the usual form.
        owner: the caller's name.
        keep: stores it; its arguments are the response, and the token ids of prompt and answer. None: it is not stored.
        seal: makes an `encrypted_content`; None where none is asked for.
    """

    key: str
    tools: Tools
    items: list[Item] = field(default_factory=list)
    owner: str = ""
    keep: Callable[[Response, list[int], list[int]], Awaitable[None]] | None = None
    seal: Callable[[str], str] | None = None

    @property
    def id(self) -> str:
        """The response's id."""
        return f"resp_{self.key}"


def ask(body: ResponsesRequest, limits: Limits) -> Asked:
    """Check a body and turn it into an `Asked`, whose chat has no messages yet.

    Raises:
        BadRequest: a value is out of its range, two contradict each other, or something is not supported.
    """
    check_supported(body)
    _check_together(body)
    given = {name: value for name in _SAMPLING if (value := getattr(body, name)) not in (None, [], "")}
    params = SamplingParams(
        **given, max_tokens=body.max_output_tokens, logprobs=_logprobs(body), structured_outputs=_format(body)
    )
    tools, key = tools_of(body.tools or ()), secrets.token_hex(12)
    return Asked(
        kind="resp",
        model=body.model,
        content=chat_of(body, tools),
        param="input",
        params=params,
        given=given,
        max_tokens=body.max_output_tokens,
        add_special_tokens=False,  # chat templates write them
        priority=body.priority or 0,
        deadline_ms=body.deadline_ms,
        session=body.prompt_cache_key or body.user or "",
        cache_salt=body.cache_salt or "",
        context=Turn(key=key, tools=tools),
        number=key,
    )


def chat_of(body: TurnBody, tools: Tools) -> Chat:
    """The chat without its messages.

    Raises:
        BadRequest: the choice of tools does not fit them.
    """
    choice = choice_of(body.tool_choice, tools)
    return Chat(
        messages=[],
        tools=tools.chat if choice.tools and tools.chat else None,
        variables=body.chat_template_kwargs,
        reasoning=_reasoning(body),
        custom=tools.custom,
        tool_fields=tools.fields,
        one_call=body.parallel_tool_calls is False or choice.one_call,
        must_call=choice.must_call,
        callable_tools=choice.callable_tools,
        thinking_budget=body.reasoning.max_tokens if body.reasoning is not None else None,
        thinking_param="reasoning.max_tokens",
        effort_param="reasoning.effort",
    )


def instructions_of(body: TurnBody) -> str | None:
    """The instructions, with what the verbosity adds to them."""
    verbosity = VERBOSITIES[(body.text.verbosity if body.text is not None else None) or "medium"]
    return "\n\n".join(filter(None, [body.instructions, verbosity])) or None


# ── refusals ──

_ONLY: Mapping[str, tuple[tuple[object, ...], str]] = {
    "truncation": (("disabled",), 'truncation must be "disabled": nothing is dropped here to make room'),
    "service_tier": (("auto", "default"), 'service_tier must be "auto" or "default": there is one tier'),
    "prompt_cache_retention": (
        ("in_memory", "in-memory"), 'prompt_cache_retention must be "in_memory": the cache is not kept longer'
    ),
}  # fmt: skip
"""Field -> its values, and the sentence that refuses others."""


def check_supported(body: TurnBody) -> None:
    """Refuse unsupported fields and values.

    Raises:
        BadRequest: naming the field.
    """
    for name in sorted(body.model_fields_set):
        value = getattr(body, name)
        if value and type(body).model_fields[name].description == NOT_SUPPORTED:
            raise BadRequest(f"{name} is not supported", name)
        if value is not None and name in _ONLY and value not in _ONLY[name][0]:
            raise BadRequest(_ONLY[name][1], name)
    if body.text is not None and body.text.verbosity not in (None, *VERBOSITIES):
        raise BadRequest(f"text.verbosity must be one of {', '.join(VERBOSITIES)}", "text.verbosity")
    _check_reasoning(body)


def _check_reasoning(body: TurnBody) -> None:
    reasoning = body.reasoning
    if reasoning is None:
        return
    if reasoning.max_tokens is not None and not 0 <= reasoning.max_tokens <= MAX_THINKING:
        sentence = f"reasoning.max_tokens must be at least 0 and at most {MAX_THINKING}, got {reasoning.max_tokens}"
        raise BadRequest(sentence, "reasoning.max_tokens")
    for name, known in _REASONING.items():
        if (value := getattr(reasoning, name)) not in (None, *known):
            raise BadRequest(
                f"reasoning.{name} must be one of {', '.join(known)}, got {value[:80]!r}", f"reasoning.{name}"
            )


_SUMMARIES = ("auto", "concise", "detailed")
_REASONING = {
    "effort": EFFORTS, "summary": (*_SUMMARIES, "none"), "generate_summary": _SUMMARIES, "context": ("auto",),
    "mode": ("standard",),
}  # fmt: skip


def _check_together(body: ResponsesRequest) -> None:
    if unknown := [name for name in body.include or () if name not in INCLUDABLE]:
        raise BadRequest(f"include must hold names such as {', '.join(INCLUDABLE)}, got {unknown[0]!r:.80}", "include")
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream to be true", "stream_options")
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        name = "stream_options.include_obfuscation"
        raise BadRequest("include_obfuscation is not supported: leave it out", name)
    if body.background and body.store is False:
        raise BadRequest("background needs store to be true: it is where the response is fetched", "background")
    for name in ("max_output_tokens", "max_tool_calls"):
        if (asked := getattr(body, name)) is not None and asked < 1:
            raise BadRequest(f"{name} must be at least 1, got {asked}", name)


# ── parts of an Asked ──


def _logprobs(body: ResponsesRequest) -> int | None:
    if LOGPROBS in (body.include or ()):
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise BadRequest(f'top_logprobs needs "{LOGPROBS}" in include', "top_logprobs")
    return None


def _format(body: TurnBody) -> StructuredOutputs | None:
    """What the text must be; None if it is free."""
    form = body.text.format if body.text is not None else None
    kind = form.get("type", "text") if form else "text"
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputs(json_object=True, param="text.format")
    if kind != "json_schema":
        raise BadRequest('text.format.type must be "text", "json_object" or "json_schema"', "text.format.type")
    return json_schema(form, "text.format")


def _reasoning(body: TurnBody) -> dict[str, Any]:
    """The request's reasoning settings as template variables, under the names that templates use; may be empty."""
    effort = body.reasoning.effort if body.reasoning is not None else None
    if effort is None:
        return {}
    return {"enable_thinking": False, "thinking": False} if effort == "none" else {"reasoning_effort": effort}
