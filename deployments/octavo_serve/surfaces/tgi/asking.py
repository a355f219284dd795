"""Turns a body of TGI's into an `Asked`.

Its defaults are TGI's: greedy unless something asks for sampling, and no sampling that a model's makers recommend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.bounds import Limits
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.tgi.schemas import CompatRequest, GenerateRequest, Grammar, Parameters

_REFUSED = {
    "typical_p": "typical_p is not supported: sample with top_p or top_k",
    "watermark": "watermark must be false: texts are not marked here",
    "adapter_id": "adapter_id is not taken: an adapter is asked for by its own name, in the model's place",
}
_ALONE = Parameters(do_sample=True)
"""What a body without any parameters means to TGI; with an empty object it is greedy."""


def parameters_of(body: GenerateRequest) -> Parameters:
    """A body's parameters, or those that are meant where it has none."""
    return _ALONE if body.parameters is None else body.parameters


def ask(body: GenerateRequest, limits: Limits) -> Asked:
    """Check a body of /generate and turn it into an `Asked`.

    Raises:
        BadRequest: a value is out of its range, two contradict each other, or something is not supported.
    """
    return _asked(body, limits, full=False, stream=False)


def ask_stream(body: GenerateRequest, limits: Limits) -> Asked:
    """The same for /generate_stream."""
    return _asked(body, limits, full=False, stream=True)


def ask_compat(body: CompatRequest, limits: Limits) -> Asked:
    """The same for /, where the text comes with its input unless it is told not to."""
    return _asked(body, limits, full=True, stream=bool(body.stream))


def _asked(body: GenerateRequest, limits: Limits, *, full: bool, stream: bool) -> Asked:
    parameters = parameters_of(body)
    given = _sampling(parameters)
    _check(parameters, given, limits, stream)
    told = stream or parameters.details or parameters.decoder_input_details
    params = SamplingParams(
        **given,
        max_tokens=parameters.max_new_tokens,
        logprobs=(parameters.top_n_tokens or 0) if told else None,
        prompt_logprobs=0 if parameters.decoder_input_details else None,
        include_stop_str_in_output=True,
    )
    return Asked(
        kind="tgi",
        model=body.model,
        content=[body.inputs],
        param="inputs",
        params=params,
        given=given,
        max_tokens=parameters.max_new_tokens,
        truncate=parameters.truncate,
        echo=full if parameters.return_full_text is None else parameters.return_full_text,
    )


def _sampling(parameters: Parameters) -> dict[str, Any]:
    """All that decides which tokens are drawn, by the names of `SamplingParams`."""
    asks = parameters.temperature not in (None, 1) or parameters.top_k or parameters.top_p not in (None, 1)
    greedy = not (parameters.do_sample or asks)
    return {
        "temperature": 0.0 if greedy else parameters.temperature or 1.0,
        "top_k": parameters.top_k or 0,
        "top_p": parameters.top_p or 1.0,
        "min_p": 0.0,
        "repetition_penalty": parameters.repetition_penalty or 1.0,
        "frequency_penalty": parameters.frequency_penalty or 0.0,
        "seed": parameters.seed,
        "stop": parameters.stop or None,
        "best_of": parameters.best_of,
        "structured_outputs": _structured(parameters.grammar) if parameters.grammar else None,
    }


def _check(parameters: Parameters, given: Mapping[str, Any], limits: Limits, stream: bool) -> None:
    for name, sentence in _REFUSED.items():
        if getattr(parameters, name) not in (None, False, ""):
            raise BadRequest(sentence, name)
    best_of = parameters.best_of or 1
    if best_of > limits.max_n:
        raise BadRequest(f"best_of must be at most {limits.max_n}, got {best_of}", "best_of")
    if best_of > 1 and given["temperature"] == 0:
        raise BadRequest("best_of needs sampling: set do_sample to true, or a temperature", "best_of")
    if stream and best_of > 1:
        raise BadRequest("best_of cannot be streamed: which sequence is best is known at the end", "best_of")
    if stream and parameters.decoder_input_details:
        raise BadRequest("decoder_input_details cannot be streamed: use /generate", "decoder_input_details")


def _structured(grammar: Grammar) -> StructuredOutputs:
    value, name = grammar.value, "parameters.grammar.value"
    if grammar.type == "regex":
        if not isinstance(value, str):
            raise BadRequest(f"{name} must be a regular expression, a text", name)
        return StructuredOutputs(regex=value, param=name)
    if grammar.type == "json_schema":
        inner = value.get("schema") if isinstance(value, dict) else None
        if not isinstance(inner, dict):
            raise BadRequest(f'{name} must be an object such as {{"schema": {{...}}}}', name)
        value = inner
    return StructuredOutputs(json=value, param=name)
