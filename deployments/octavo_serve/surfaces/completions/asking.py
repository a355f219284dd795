"""Turns a completion's body into an `Asked`."""

from __future__ import annotations

from typing import Any

from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.bounds import MAX_CHOICES, Limits
from octavo_serve.api.jobs import Asked, Prompt
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.openai.asking import check_stream, check_supported, given_sampling, session_of


def ask(body: CompletionRequest, limits: Limits) -> Asked:
    """Check a body and turn it into an `Asked`.

    Raises:
        BadRequest: a value is out of its range, two contradict each other, or something is not supported.
    """
    check_supported(body, limits)
    given = given_sampling(body)
    if body.echo and body.logprobs is not None:
        given["prompt_logprobs"] = body.logprobs
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    params = SamplingParams(**given, max_tokens=max_tokens, logprobs=body.logprobs)
    check_stream(body, params)
    return Asked(
        kind="cmpl",
        model=body.model,
        content=_prompts(body, limits, params.num_places),
        param="prompt",
        params=params,
        given=given,
        max_tokens=body.max_tokens,
        add_special_tokens=body.add_special_tokens is not False,
        priority=body.priority or 0,
        deadline_ms=body.deadline_ms,
        session=session_of(body),
        cache_salt=body.cache_salt or "",
        echo=bool(body.echo),
    )


def _prompts(body: CompletionRequest, limits: Limits, sequences: int) -> list[Prompt]:
    """The prompts, one by one; each becomes so many sequences."""
    prompt: Any = "" if body.prompt is None else body.prompt
    single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    prompts: list[Prompt] = [prompt] if single else prompt
    if len(prompts) > limits.max_prompts:
        raise BadRequest(f"at most {limits.max_prompts} prompts fit one request, got {len(prompts)}", "prompt")
    if len(prompts) * sequences > MAX_CHOICES:
        raise BadRequest(f"at most {MAX_CHOICES} sequences fit one request over all of its prompts", "prompt")
    if not prompts or not all(ids or isinstance(ids, str) for ids in prompts):
        raise BadRequest("prompt must not be empty", "prompt")
    return prompts
