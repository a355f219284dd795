"""From a request's body to what the engine is asked: validation, sampling parameters, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from octavo.errors import BadRequest, PromptTooLong
from octavo.request import SamplingParams
from octavo_serve.openai.schemas import Body, ChatRequest, CompletionRequest, SamplingBody
from octavo_serve.validation import explain

B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for (see `GatewaySettings`)."""

    max_body_bytes: int = 16 * 2**20
    max_prompts: int = 1024
    max_n: int = 128


def parse(kind: type[B], body: bytes | Mapping[str, Any]) -> B:
    """Validate a JSON body, or the same as a mapping.

    Raises:
        BadRequest: naming the field that is wrong, missing, unknown or unsupported.
    """
    try:
        parsed = kind.model_validate_json(body) if isinstance(body, bytes) else kind.model_validate(dict(body))
    except ValidationError as error:
        raise BadRequest(*explain(error, kind)) from None
    if isinstance(parsed, SamplingBody):
        for name, sentence in parsed.refusals().items():
            raise BadRequest(sentence, name)
    return parsed


def sampling_params(body: ChatRequest | CompletionRequest, limits: Limits) -> SamplingParams:
    """Sampling parameters of a request, defaults filled in.

    Raises:
        BadRequest: a value is out of its range, or two contradict each other.
    """
    chat = isinstance(body, ChatRequest)
    given: dict[str, Any] = {
        name: getattr(body, name)
        for name in ("n", "best_of", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
                     "repetition_penalty", "seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
                     "min_tokens", "skip_special_tokens", "prompt_logprobs")
        if getattr(body, name) is not None
    }  # fmt: skip
    if body.logit_bias:
        given["logit_bias"] = _logit_bias(body.logit_bias)
    given["stop"] = body.stop or None  # an empty list asks for nothing
    given["max_tokens"] = _max_tokens(body)
    given["logprobs"] = _chat_logprobs(body) if isinstance(body, ChatRequest) else body.logprobs
    if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
        given["prompt_logprobs"] = body.logprobs
    params = SamplingParams(**given)
    for name in ("n", "best_of"):
        if (getattr(params, name) or 1) > limits.max_n:
            raise BadRequest(f"{name} must be at most {limits.max_n}, got {getattr(params, name)}", name)
    if chat and params.best_of not in (None, params.n):
        raise BadRequest("best_of is a parameter of /v1/completions; use n", "best_of")
    if body.stream and params.num_sequences > params.n:
        raise BadRequest("best_of cannot be streamed: which sequence is best is known at the end", "best_of")
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream to be true", "stream_options")
    return params


def _max_tokens(body: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(body, ChatRequest):
        return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if body.max_tokens == 0 and body.echo:
        return 1  # only the prompt is wanted: one token is generated and left out
    return 16 if body.max_tokens is None else body.max_tokens


def _chat_logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError:
        raise BadRequest("the keys of logit_bias must be token ids", "logit_bias") from None


def prompts_of(body: CompletionRequest, limits: Limits) -> list[str | list[int]]:
    """The prompts of a completion request, one by one.

    Raises:
        BadRequest: there is none, an empty one, or more than the limit.
    """
    prompt = body.prompt
    if isinstance(prompt, str):
        prompts: list[str | list[int]] = [prompt]
    elif prompt and isinstance(prompt[0], int):
        prompts = [[token for token in prompt if isinstance(token, int)]]
    else:
        prompts = [item for item in prompt if not isinstance(item, int)]
    if len(prompts) > limits.max_prompts:
        raise BadRequest(f"at most {limits.max_prompts} prompts fit one request, got {len(prompts)}", "prompt")
    if not prompts or not all(prompts):
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
