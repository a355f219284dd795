"""Turns a request's inputs into an `Asked`; sampling means what it does in /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.config import unknown_key
from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.kserve.inputs import Inputs, of_fields, of_tensors
from octavo_serve.surfaces.kserve.schemas import GenerateRequest, InferRequest, Sampling
from octavo_serve.surfaces.openai.asking import check_supported, given_sampling, session_of

NAMES = (
    "n", "best_of", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "min_tokens", "max_tokens", "logprobs", "skip_special_tokens", "spaces_between_special_tokens", "bad_words",
    "allowed_token_ids", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "use_beam_search", "beam_width", "length_penalty", "early_stopping", "cache_salt", "user",
)  # fmt: skip
"""What may be sampled by: vLLM's names, and a session's."""

_TEXTS = ("stop", "guided_regex", "guided_grammar", "cache_salt", "user")
"""Names whose values may be texts; of others a text is the value's JSON."""


def ask_infer(body: InferRequest, limits: Limits) -> Asked:
    """Check a body of /infer and turn it into an `Asked`.

    Raises:
        BadRequest: a value is out of its range, two contradict each other, or something is not supported.
    """
    return _asked(_whole(of_tensors(body)), limits)


def ask_generate(body: GenerateRequest, limits: Limits) -> Asked:
    """The same for /generate."""
    return _asked(_whole(of_fields(body)), limits)


def ask_stream(body: GenerateRequest, limits: Limits) -> Asked:
    """The same for /generate_stream."""
    return _asked(of_fields(body), limits)


def _whole(inputs: Inputs) -> Inputs:
    if inputs.stream:
        raise BadRequest("stream must be false here: /generate_stream answers in several parts", "stream")
    return inputs


def _asked(inputs: Inputs, limits: Limits) -> Asked:
    sampling = parse(Sampling, _read(inputs.sampling))
    check_supported(sampling, limits)
    given = given_sampling(sampling)
    max_tokens = 16 if sampling.max_tokens is None else sampling.max_tokens
    logprobs = sampling.logprobs
    if logprobs is None and "cumulative_logprob" in inputs.outputs:
        logprobs = 0
    params = SamplingParams(**given, max_tokens=max_tokens, logprobs=logprobs)
    if inputs.stream and params.num_sequences > 1:
        raise BadRequest("n and best_of must be 1 in a stream", "n" if params.n > 1 else "best_of")
    return Asked(
        kind="infer",
        model=None,
        content=[inputs.text],
        param="text_input",
        params=params,
        given=given,
        max_tokens=sampling.max_tokens,
        session=session_of(sampling),
        cache_salt=sampling.cache_salt or "",
        echo=inputs.prepend,
        context=inputs,
    )


def _read(sampling: Mapping[str, Any]) -> dict[str, Any]:
    for name in sampling:
        if name not in NAMES:
            raise BadRequest(unknown_key(str(name), list(NAMES), "parameter"), str(name)[:80])
    return {name: _value(name, value) for name, value in sampling.items()}


def _value(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name in _TEXTS:
        return value
    try:
        return msgspec.json.decode(value)
    except (ValueError, RecursionError):
        return value  # whose type is then refused by name
