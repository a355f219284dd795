"""TGI's parameters: each is done or refused, with TGI's defaults."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.tgi.asking import ask, ask_compat, ask_stream, parameters_of
from octavo_serve.surfaces.tgi.schemas import CompatRequest, GenerateRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def asked(**parameters: Any) -> Asked:
    return ask(parse(GenerateRequest, {"inputs": "Hi", "parameters": parameters}), Limits(max_n=4))


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False, "temperature": 1.0, "top_p": 1.0}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.9, "repetition_penalty": 1.2}, 1.0),
        ({"repetition_penalty": 1.2}, 0.0),
    ],
)
def test_what_samples(parameters: dict[str, Any], temperature: float) -> None:
    assert asked(**parameters).params.temperature == temperature


def test_a_body_without_parameters_samples() -> None:
    body = parse(GenerateRequest, {"inputs": "Hi"})
    assert ask(body, Limits()).params.temperature == 1.0
    assert parameters_of(body).do_sample


def test_no_recommended_sampling_is_filled_in() -> None:
    given = asked().given
    assert all(given[name] is not None for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))


def test_names_that_differ() -> None:
    found = asked(
        max_new_tokens=7, stop=["a"], seed=2**64 - 1, frequency_penalty=0.5, truncate=3, details=True, top_n_tokens=2
    )
    params = found.params
    assert (params.max_tokens, params.stop, params.seed, params.frequency_penalty) == (7, ["a"], 2**64 - 1, 0.5)
    assert (found.max_tokens, found.truncate, found.content, found.echo) == (7, 3, ["Hi"], False)
    assert params.include_stop_str_in_output
    assert (params.logprobs, params.prompt_logprobs) == (2, None)


def test_log_probabilities_are_computed_where_they_are_told() -> None:
    assert asked(top_n_tokens=2).params.logprobs is None
    assert asked(decoder_input_details=True).params.prompt_logprobs == 0
    assert ask_stream(parse(GenerateRequest, {"inputs": "Hi"}), Limits()).params.logprobs == 0


@pytest.mark.parametrize(("full", "echo"), [(None, True), (True, True), (False, False)])
def test_the_input_comes_with_the_text_where_tgi_lets_it(full: bool | None, echo: bool) -> None:
    body = parse(CompatRequest, {"inputs": "Hi", "parameters": {"return_full_text": full}})
    assert ask_compat(body, Limits()).echo is echo


@pytest.mark.parametrize(
    ("grammar", "wanted"),
    [
        ({"type": "json", "value": SCHEMA}, {"json": SCHEMA}),
        ({"type": "json_object", "value": '{"type": "object"}'}, {"json": '{"type": "object"}'}),
        ({"type": "json_schema", "value": {"name": "a", "schema": SCHEMA}}, {"json": SCHEMA}),
        ({"type": "regex", "value": "[ab]+"}, {"regex": "[ab]+"}),
    ],
)
def test_grammars(grammar: Any, wanted: dict[str, Any]) -> None:
    found = asked(grammar=grammar).params.structured_outputs
    assert found == StructuredOutputs(param="parameters.grammar.value", **wanted)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"typical_p": 0.9}, "typical_p is not supported"),
        ({"watermark": True}, "watermark must be false"),
        ({"adapter_id": "mine"}, "asked for by its own name"),
        ({"best_of": 2}, "best_of needs sampling"),
        ({"best_of": 5, "do_sample": True}, "best_of must be at most 4"),
        ({"temperature": 0}, "parameters.temperature must be greater than 0"),
        ({"top_k": 0}, "parameters.top_k must be greater than or equal to 1"),
        ({"max_new_tokens": 0}, "parameters.max_new_tokens must be greater than or equal to 1"),
        ({"top_n_tokens": 21}, "parameters.top_n_tokens must be less than or equal to 20"),
        ({"max_tokens": 1}, "unknown field 'max_tokens': did you mean 'max_new_tokens'"),
        ({"grammar": {"type": "regex", "value": SCHEMA}}, "must be a regular expression"),
        ({"grammar": {"type": "json_schema", "value": SCHEMA}}, 'must be an object such as {"schema": {...}}'),
        ({"stop": ["a"] * 17}, "parameters.stop must have at most 16 entries"),
    ],
)
def test_what_is_refused(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        asked(**parameters)
    assert says in str(refused.value)


@pytest.mark.parametrize("name", ["typical_p", "watermark", "adapter_id", "grammar", "stop", "seed"])
def test_null_asks_for_nothing(name: str) -> None:
    assert asked(**{name: None}).params == asked().params


@pytest.mark.parametrize("parameters", [{"best_of": 2, "do_sample": True}, {"decoder_input_details": True}])
def test_what_no_stream_has(parameters: dict[str, Any]) -> None:
    body = parse(CompatRequest, {"inputs": "Hi", "parameters": parameters, "stream": True})
    with pytest.raises(BadRequest, match="cannot be streamed"):
        ask_compat(body, Limits())
