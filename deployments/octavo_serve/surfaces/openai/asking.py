"""Fields that chats and completions share: sampling, streams, sessions."""

from __future__ import annotations

from typing import Any

from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.bounds import MAX_PROMPT_VALUES, Limits
from octavo_serve.surfaces.openai.beams import beams_of
from octavo_serve.surfaces.openai.refusals import refusal
from octavo_serve.surfaces.openai.schemas import SamplingBody
from octavo_serve.surfaces.openai.structured import structured_outputs

_SAME = frozenset({
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "seed", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens",
    "prompt_logprobs",
})  # fmt: skip
"""Fields that `SamplingParams` has too, with the same meaning."""


def check_supported(body: SamplingBody, limits: Limits) -> None:
    """Refuse unsupported fields, and more sequences than allowed.

    Raises:
        BadRequest: naming the field.
    """
    if refused := refusal(body):
        raise BadRequest(refused[1], refused[0])
    best_of = body.best_of or None  # OpenAI allows a best_of of 0
    counts = {"n": body.n, "best_of": best_of, "beam_width": body.beam_width}
    for name, asked in counts.items():
        if asked is not None and not 1 <= asked <= limits.max_n:
            raise BadRequest(f"{name} must be at least 1 and at most {limits.max_n}, got {asked}", name)


def given_sampling(body: SamplingBody) -> dict[str, Any]:
    """The body's sampling fields, by the names of `SamplingParams`.

    Raises:
        BadRequest: a key of `logit_bias` is no token id, or a beam search is half asked for.
    """
    sent = body.model_fields_set & _SAME
    given: dict[str, Any] = {name: value for name in sent if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        given["logit_bias"] = _logit_bias(body.logit_bias)
    given["stop"] = body.stop or None  # an empty list or string means none
    given["allowed_token_ids"] = body.allowed_token_ids or None
    given["bad_words"] = body.bad_words or []
    given["structured_outputs"] = structured_outputs(body)
    given["beams"] = beams_of(body)
    given["best_of"] = None if given["beams"] else body.best_of or None  # of a search it is the width
    return given


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdigit() and len(token) <= 10 for token in bias):
        raise BadRequest("the keys of logit_bias must be token ids", "logit_bias")
    return {int(token): value for token, value in bias.items()}


def check_stream(body: SamplingBody, params: SamplingParams) -> None:
    """Refuse fields that a stream does not support, or that only a stream supports.

    Raises:
        BadRequest: naming the field.
    """
    if body.stream and params.num_sequences > params.n:
        raise BadRequest("best_of cannot be streamed: which sequence is best is known at the end", "best_of")
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream to be true", "stream_options")


def session_of(body: SamplingBody) -> str:
    """The session name from the body, used if no header names one; "" for none."""
    return body.prompt_cache_key or body.user or ""


def check_prompt_values(values: int, body: SamplingBody) -> None:
    """Refuse an answer with more prompt log probabilities than may be in memory at once."""
    if values > MAX_PROMPT_VALUES:
        raise BadRequest(
            f"the answer would hold {values} log probabilities of prompt tokens; at most {MAX_PROMPT_VALUES} fit one: "
            "ask for fewer of them, or for fewer choices",
            "logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
        )
