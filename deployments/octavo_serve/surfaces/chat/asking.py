"""Turns a chat's body into an `Asked`."""

from __future__ import annotations

from typing import Any

from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.bounds import MAX_THINKING, Limits
from octavo_serve.api.chats import Chat, as_function_tool, as_functions
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.tools import choice_of, custom_tools
from octavo_serve.surfaces.openai.asking import check_stream, check_supported, given_sampling, session_of


def ask(body: ChatRequest, limits: Limits) -> Asked:
    """Check a body and turn it into an `Asked`.

    Raises:
        BadRequest: a value is out of its range, two contradict each other, or something is not supported.
    """
    check_supported(body, limits)
    given = given_sampling(body)
    max_tokens = _max_tokens(body)
    params = SamplingParams(**given, max_tokens=max_tokens, logprobs=_logprobs(body))
    if params.best_of not in (None, params.n):
        raise BadRequest("best_of is a parameter of /v1/completions; use n", "best_of")
    check_stream(body, params)
    return Asked(
        kind="chatcmpl",
        model=body.model,
        content=_chat(body),
        param="messages",
        params=params,
        given=given,
        max_tokens=max_tokens,
        add_special_tokens=bool(body.add_special_tokens),  # chat templates write special tokens themselves
        priority=body.priority or 0,
        deadline_ms=body.deadline_ms,
        session=session_of(body),
        cache_salt=body.cache_salt or "",
        tells_origins=bool(body.return_token_origins),
        prediction=_predicted(body.prediction),
    )


def _predicted(prediction: dict[str, Any] | None) -> str:
    """The text of OpenAI's `prediction`.

    Raises:
        BadRequest: it is none.
    """
    if prediction is None:
        return ""
    content = prediction.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if prediction.get("type") == "content" and prediction.keys() == {"type", "content"} and isinstance(parts, list):
        texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        if len(words := [text for text in texts if isinstance(text, str)]) == len(parts):
            return "".join(words)
    sentence = 'must be {"type": "content", "content": ...}, with a text or a list of parts of type "text"'
    raise BadRequest(f"prediction {sentence}", "prediction")


def _max_tokens(body: ChatRequest) -> int | None:
    """A chat's answer has a message: 0, which completions take, is refused."""
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    asked: int | None = getattr(body, name)
    if asked is not None and asked < 1:
        raise BadRequest(f"{name} must be at least 1, got {asked}", name)
    return asked


def _logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _chat(body: ChatRequest) -> Chat:
    choice = choice_of(body.tool_choice, body.tools or ())
    budget, budget_param = _budget(body)
    return Chat(
        messages=[as_functions(message) for message in body.messages],
        tools=None if choice.none or body.tools is None else [as_function_tool(tool) for tool in body.tools],
        variables=body.chat_template_kwargs,
        reasoning=_reasoning(body),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        custom=custom_tools(body.tools or ()),
        one_call=body.parallel_tool_calls is False or choice.named,
        must_call=choice.must_call,
        callable_tools=choice.callable_tools,
        thinking_budget=budget,
        thinking_param=budget_param,
    )


_BUDGETS = ("thinking_token_budget", "thinking.budget_tokens", "reasoning.max_tokens")


def _budget(body: ChatRequest) -> tuple[int | None, str]:
    """Tokens that the model may think, and the field that says so.

    Raises:
        BadRequest: it is no number of at least 0, or two fields say it.
    """
    values = (
        body.thinking_token_budget,
        (body.thinking or {}).get("budget_tokens"),
        (body.reasoning or {}).get("max_tokens"),
    )
    given = [(value, name) for value, name in zip(values, _BUDGETS, strict=True) if value is not None]
    if len(given) > 1:
        raise BadRequest(f"{given[0][1]} and {given[1][1]} exclude each other: send one of them", given[1][1])
    for value, name in given:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_THINKING:
            raise BadRequest(
                f"{name} must be an integer of at least 0 and at most {MAX_THINKING}, got {value!r:.40}", name
            )
    return given[0] if given else (None, "thinking")


def _reasoning(body: ChatRequest) -> dict[str, Any]:
    """The request's reasoning settings as template variables, under the names that templates use; may be empty."""
    reasoning = body.reasoning or {}
    effort = body.reasoning_effort or reasoning.get("effort")
    enabled = body.thinking.get("type") == "enabled" if body.thinking else reasoning.get("enabled")
    enabled = False if effort == "none" else enabled
    variables = {} if effort in (None, "none") else {"reasoning_effort": effort}
    return variables if enabled is None else variables | {"enable_thinking": enabled, "thinking": enabled}
