"""Sampling parameters mean what they do in /v1/completions, as values or as texts; others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.beams import BeamSearch
from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.completions.asking import ask
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.kserve.asking import NAMES, ask_generate, ask_infer, ask_stream
from octavo_serve.surfaces.kserve.schemas import GenerateRequest, InferRequest, Sampling

SAMPLING: dict[str, Any] = {
    "n": 2,
    "best_of": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 7,
    "stop": ["a"],
    "ignore_eos": True,
    "max_tokens": 9,
    "logprobs": 2,
    "logit_bias": {"5": 1.5},
}


def asked(**sampling: Any) -> Asked:
    return ask_generate(parse(GenerateRequest, {"text_input": "Hi", "parameters": sampling}), Limits())


def test_the_same_as_completions() -> None:
    found, wanted = asked(**SAMPLING), ask(parse(CompletionRequest, {"prompt": "Hi"} | SAMPLING), Limits())
    assert (found.params, found.given, found.max_tokens) == (wanted.params, wanted.given, wanted.max_tokens)
    assert asked().params == ask(parse(CompletionRequest, {"prompt": "Hi"}), Limits()).params


def test_values_as_texts() -> None:
    texts = {"temperature": "0.5", "max_tokens": "9", "ignore_eos": "true", "logit_bias": '{"5": 1.5}', "stop": "7"}
    values = {"temperature": 0.5, "max_tokens": 9, "ignore_eos": True, "logit_bias": {"5": 1.5}, "stop": "7"}
    assert asked(**texts).params == asked(**values).params
    found = asked(structured_outputs='{"regex": "[ab]"}').params.structured_outputs
    assert found == StructuredOutputs(regex="[ab]", param="structured_outputs.regex")


def test_every_name_is_one_that_is_done() -> None:
    assert set(NAMES) <= set(Sampling.model_fields)


def test_log_probabilities_for_their_sum() -> None:
    assert asked(return_cumulative_logprob=True).params.logprobs == 0
    assert asked(return_logprobs=True).params.logprobs is None


def test_the_input_is_repeated_unless_it_is_told_not_to() -> None:
    assert asked().echo
    assert not asked(exclude_input_in_output=True).echo


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ({"temperatur": 1}, "unknown parameter 'temperatur': did you mean 'temperature'?"),
        ({"sequence_id": 5}, "unknown parameter 'sequence_id'"),
        ({"priority": 1}, "unknown parameter 'priority'"),
        ({"model": "other"}, "unknown parameter 'model'"),
        ({"temperature": "warm"}, "temperature must be"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"length_penalty": 2.0}, "beam search"),
        ({"beam_width": 2, "use_beam_search": False}, "beam_width belongs to beam search"),
        ({"stream": True}, "stream must be false here"),
    ],
)
def test_what_is_refused(sampling: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        asked(**sampling)
    assert says in str(refused.value)


def test_a_search() -> None:
    found = asked(use_beam_search="true", beam_width="3", n="2", early_stopping="never", length_penalty="0.5").params
    assert (found.beams, found.n) == (BeamSearch(3, 0.5, "never"), 2)


def test_streams() -> None:
    body = parse(GenerateRequest, {"text_input": "Hi", "stream": True, "n": 2})
    with pytest.raises(BadRequest, match="n and best_of must be 1 in a stream"):
        ask_stream(body, Limits())
    tensors = [
        {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Hi"]},
        {"name": "stream", "datatype": "BOOL", "shape": [1], "data": [True]},
    ]
    with pytest.raises(BadRequest, match="stream must be false here"):
        ask_infer(parse(InferRequest, {"inputs": tensors}), Limits())
