"""From a request's body to what the engine is asked: validation, sampling parameters, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from octavo.config import unknown_key
from octavo.errors import BadRequest, PromptTooLong
from octavo.request import SamplingParams
from octavo_serve.api.body import fields_of
from octavo_serve.api.bounds import MAX_CHOICES, MAX_NAME, MAX_PROMPT_VALUES, BodyBounds
from octavo_serve.surfaces.openai.refusals import refusal
from octavo_serve.surfaces.openai.schemas import Body, ChatRequest, CompletionRequest, SamplingBody
from octavo_serve.validation import explain

B = TypeVar("B", bound=Body)
_BOUNDS = BodyBounds()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for (see `GatewaySettings`)."""

    max_body_bytes: int | None = None
    max_prompts: int = 1024
    max_n: int = 128


def parse(kind: type[B], body: bytes | Mapping[str, Any], bounds: BodyBounds = _BOUNDS) -> B:
    """Validate a JSON body, or the same as a mapping.

    Raises:
        BadRequest: naming the field that is wrong, missing, unknown or unsupported.
    """
    fields = fields_of(body, bounds)
    if len(fields) > len(kind.model_fields):  # else pydantic names the one that is unknown, with an error for each
        name = next(str(name)[:MAX_NAME] for name in fields if name not in kind.model_fields)
        raise BadRequest(unknown_key(name, list(kind.model_fields), "field"), name)
    try:
        parsed = kind.model_validate(fields)
    except ValidationError as error:
        raise BadRequest(*explain(error, kind)) from None
    if isinstance(parsed, SamplingBody) and (refused := refusal(parsed)):
        raise BadRequest(refused[1], refused[0])
    return parsed


def sampling_params(body: ChatRequest | CompletionRequest, limits: Limits) -> SamplingParams:
    """Sampling parameters of a request; where it leaves one open, that of `SamplingParams`.

    Raises:
        BadRequest: a value is out of its range, or two contradict each other.
    """
    chat = isinstance(body, ChatRequest)
    _check_sequences(body, limits)
    sent = body.model_fields_set & _SAME
    given: dict[str, Any] = {name: value for name in sent if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        given["logit_bias"] = _logit_bias(body.logit_bias)
    given["stop"] = body.stop or None  # an empty list or string asks for nothing
    given["best_of"] = body.best_of or None
    given["max_tokens"] = _max_tokens(body)
    given["logprobs"] = _chat_logprobs(body) if isinstance(body, ChatRequest) else body.logprobs
    if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
        given["prompt_logprobs"] = body.logprobs
    params = SamplingParams(**given)
    if chat and params.best_of not in (None, params.n):
        raise BadRequest("best_of is a parameter of /v1/completions; use n", "best_of")
    if body.stream and params.num_sequences > params.n:
        raise BadRequest("best_of cannot be streamed: which sequence is best is known at the end", "best_of")
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream to be true", "stream_options")
    return params


_SAME = frozenset({
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "seed", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens",
    "prompt_logprobs",
})  # fmt: skip
"""Fields that `SamplingParams` has, too, with the same meaning."""


def _check_sequences(body: SamplingBody, limits: Limits) -> None:
    for name, asked in (("n", body.n), ("best_of", body.best_of or None)):  # OpenAI allows a best_of of 0
        if asked is not None and not 1 <= asked <= limits.max_n:
            raise BadRequest(f"{name} must be at least 1 and at most {limits.max_n}, got {asked}", name)


def _max_tokens(body: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(body, ChatRequest):
        if body.max_completion_tokens is not None and body.max_completion_tokens < 1:
            raise BadRequest(
                f"max_completion_tokens must be at least 1, got {body.max_completion_tokens}", "max_completion_tokens"
            )
        return body.asked_tokens
    # none are wanted: one token is generated and left out
    return 16 if body.max_tokens is None else body.max_tokens or 1


def _chat_logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdigit() and len(token) <= 10 for token in bias):
        raise BadRequest("the keys of logit_bias must be token ids", "logit_bias")
    return {int(token): value for token, value in bias.items()}


def check_prompt_logprobs(prompt_tokens: int, body: ChatRequest | CompletionRequest) -> None:
    """Refuse an answer that holds more log probabilities of its prompts than may be in memory at once.

    Args:
        prompt_tokens: of all prompts; a completion's choices each repeat those of their prompt.
    """
    echoes = isinstance(body, CompletionRequest) and body.echo
    if body.prompt_logprobs is None and not echoes:
        return
    asked = [body.prompt_logprobs]
    if isinstance(body, CompletionRequest):
        asked = [*asked, body.logprobs if body.echo else None] * body.sequences
    values = prompt_tokens * sum(1 + count for count in asked if count is not None)
    if values > MAX_PROMPT_VALUES:
        raise BadRequest(
            f"the answer would hold {values} log probabilities of prompt tokens; at most {MAX_PROMPT_VALUES} fit one: "
            "ask for fewer of them, or for fewer choices",
            "logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
        )


def template_variables(body: ChatRequest) -> dict[str, Any]:
    """What the request asks of the chat template about reasoning, in the names that templates use; may be empty."""
    reasoning = body.reasoning or {}
    effort = body.reasoning_effort or reasoning.get("effort")
    enabled = body.thinking["type"] == "enabled" if body.thinking else reasoning.get("enabled")
    enabled = False if effort == "none" else enabled
    variables = {} if effort in (None, "none") else {"reasoning_effort": effort}
    return variables if enabled is None else variables | {"enable_thinking": enabled, "thinking": enabled}


def check_template_reads(variables: Mapping[str, Any], source: str) -> None:
    """Refuse what a chat template does not read, unless it asks for nothing that would be different then.

    Raises:
        BadRequest: the answer would be the same without it.
    """
    effort = variables.get("reasoning_effort", "medium")
    if effort != "medium" and "reasoning_effort" not in source:
        raise BadRequest("this model has no reasoning effort to choose: leave it out", "reasoning_effort")
    if variables.get("thinking") and "thinking" not in source:
        raise BadRequest("this model's thinking cannot be switched on: leave it out", "thinking")


def prompts_of(body: CompletionRequest, limits: Limits) -> list[str | list[int]]:
    """The prompts of a completion request, one by one.

    Raises:
        BadRequest: there is none, a list of no token ids, or more than the limit.
    """
    prompt: Any = "" if body.prompt is None else body.prompt
    single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    prompts: list[str | list[int]] = [prompt] if single else prompt
    if len(prompts) > limits.max_prompts:
        raise BadRequest(f"at most {limits.max_prompts} prompts fit one request, got {len(prompts)}", "prompt")
    if len(prompts) * (body.best_of or body.sequences) > MAX_CHOICES:
        raise BadRequest(f"at most {MAX_CHOICES} sequences fit one request over all of its prompts", "prompt")
    if not prompts or not all(ids or isinstance(ids, str) for ids in prompts):
        raise BadRequest("prompt must not be empty", "prompt")
    return prompts


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Refuse ids the model does not know."""
    if token_ids and max(token_ids) >= vocab_size:
        raise BadRequest(f"token id {max(token_ids)} is not in the vocabulary of {vocab_size} tokens", param)


def check_length(prompt_tokens: int, max_tokens: int | None, max_model_len: int, param: str) -> None:
    """Refuse a prompt, or a prompt with its `max_tokens`, that the model's context cannot hold."""
    if prompt_tokens == 0:
        raise BadRequest(f"{param} must not be empty", param)
    if prompt_tokens >= max_model_len:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens; this model's context of {max_model_len} tokens must hold it and "
            "at least one more: shorten it",
            param,
        )
    if max_tokens is not None and prompt_tokens + max_tokens > max_model_len:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens and max_tokens asks for {max_tokens} more, but this model's "
            f"context holds {max_model_len}: ask for at most {max_model_len - prompt_tokens}",
            "max_tokens",
        )
