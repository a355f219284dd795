"""Settings: every wrong key is named with the nearest valid one, at any depth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo_serve.config.settings import deployment_name, load_settings

MODEL = {"name": "a", "source": "b"}

WRONG = [
    ({}, "setting 'models' is required"),
    ({"models": []}, "models must not be empty"),
    ({"model": [MODEL]}, "unknown setting 'model': did you mean 'models'?"),
    ({"models": [MODEL], "gatway": {}}, "unknown setting 'gatway': did you mean 'gateway'?"),
    ({"models": [{"name": "a"}]}, "setting 'models.0.source' is required"),
    ({"models": [{**MODEL, "replica": 2}]}, "unknown setting 'replica': did you mean 'replicas'? in models.0"),
    ({"models": [{**MODEL, "replicas": "2"}]}, "models.0.replicas must be a valid integer, got '2'"),
    ({"models": [{**MODEL, "replicas": {"max": 2, "mni": 1}}]}, "unknown setting 'mni': did you mean 'min'?"),
    ({"models": [{**MODEL, "replicas": {"min": 3, "max": 2}}]}, "min 3, initial 3 and max 2 must be in this order"),
    ({"models": [{**MODEL, "replicas": {"max": 2, "utilization": 2}}]}, "must be less than or equal to 1, got 2"),
    ({"models": [{**MODEL, "engine": {"block_sizes": 4}}]}, "did you mean 'block_size'? in models.0.engine"),
    ({"models": [{**MODEL, "engine": {"block_size": 0}}]}, "block_size must be a whole number of at least 1, got 0"),
    ({"models": [{**MODEL, "engine": {"target_itl": "soon"}}]}, "target_itl must be a valid number"),
    (
        {"models": [{**MODEL, "engine": {"quantization": "int5"}}]},
        "quantization must be one of int8, int4, either with",
    ),
    ({"models": [{**MODEL, "engine": {"device": "cud"}}]}, "device must be auto, cpu, cuda or cuda:NUMBER, got 'cud'"),
    ({"models": [{**MODEL, "engine": {1: 2}}]}, "unknown setting '1'"),
    ({"models": [{**MODEL, "response_template": "mistrl"}]}, "no response template; did you mean 'mistral'?"),
    ({"models": [{**MODEL, "response_template": "?"}]}, "no response template; known are auto, none, deepseek_dsml"),
    ({"models": [{**MODEL, "engine": None}]}, "models.0.engine must be a mapping of keys to values, got None"),
    ({"models": [{**MODEL, "num_gpus": float("inf")}]}, "models.0.num_gpus must be a finite number"),
    ({"models": [{**MODEL, "name": "a\nb"}]}, "a name must not hold U+000A, which cannot be seen"),
    ({"models": [{**MODEL, "aliases": ["a\u202eb"]}]}, "a name must not hold U+202E, which cannot be seen"),
    ({"models": [{**MODEL, "name": "a" * 257}]}, "models.0.name"),
    ({"models": ["a"]}, "models.0 must be a mapping of keys to values, got 'a'"),
    ([], "what args holds must be a mapping of keys to values, got []"),
    ({"models": [MODEL], "gateway": {"max_m": 4}}, "unknown setting 'max_m': did you mean 'max_n'? in gateway"),
    ({"models": [MODEL], "router": {"report_s": 0}}, "router.report_s must be greater than 0, got 0"),
    ({"models": [MODEL, MODEL]}, "two models are called 'a'"),
    ({"models": [MODEL], "api_key": []}, "unknown setting 'api_key': did you mean 'api_keys'?"),
    ({"models": [MODEL], "isolate_cache": True}, "isolate_cache keeps the prompts of different keys apart"),
    ({"models": [MODEL], "client_priority": {"min": 2, "max": 1}}, "min 2 must not be above max 1"),
    ({"models": [MODEL], "client_priority": {"mim": 2}}, "did you mean 'min'? in client_priority"),
    (
        {"models": [MODEL], "client_priority": {"max": 2**63}},
        "client_priority.max must be less than 9223372036854775808",
    ),
    ({"models": [MODEL], "allowed_hosts": ["http://a"]}, "'http://a' is not a host"),
    ({"models": [MODEL], "allowed_hosts": ["a:80"]}, "'a:80' is not a host"),
    ({"models": [MODEL], "cors_origins": ["app.example.com"]}, "'app.example.com' is not an origin"),
    ({"models": [MODEL], "cors_origins": ["https://a.example/"]}, "is not an origin"),
]


@pytest.mark.parametrize(("args", "sentence"), WRONG)
def test_what_is_wrong_is_named(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(args)
    assert sentence in str(caught.value)


def test_engine_settings_reach_the_engine() -> None:
    settings = load_settings({"models": [{**MODEL, "engine": {"block_size": 32, "target_itl": 0.05}}]})
    assert (settings.models[0].engine.block_size, settings.models[0].engine.target_itl) == (32, 0.05)


def test_settings_without_keys_come_back_as_they_are() -> None:
    settings = load_settings({"models": [MODEL]})
    assert load_settings(settings.as_args()) == settings


@pytest.mark.parametrize("name", ["llama", "Qwen3-0.6B", "a_b", "x" * 80])
def test_a_plain_models_deployment_has_its_name(name: str) -> None:
    assert deployment_name(name) == f"shard-{name}"


ALIKE = st.text("ab-/_. \u00e9:#", min_size=1, max_size=4) | st.text(min_size=1, max_size=120)


@given(ALIKE, ALIKE)
def test_no_two_models_share_a_deployment(one: str, other: str) -> None:
    assert (deployment_name(one) == deployment_name(other)) == (one == other)
    assert re.fullmatch(r"shards?-[A-Za-z0-9._-]{1,100}", deployment_name(one))


def test_names_that_differ_in_a_separator_are_two_models() -> None:
    assert deployment_name("org/m") != deployment_name("org-m") != deployment_name("org:m")
    assert deployment_name(deployment_name("org/m").removeprefix("shards-")) != deployment_name("org/m")


def test_where_responses_are_stored() -> None:
    shared = Path("/shared/file")

    def path(**gateway: Any) -> Path | None:
        return load_settings({"models": [MODEL], "gateway": gateway}).gateway.records(lambda: shared).path

    assert (path(), path(replicas=2)) == (None, shared)
    assert path(replicas=2, responses_store="/a/b") == path(responses_store="/a/b") == Path("/a/b")
    for name, wrong in (("responses_store", ""), ("responses_store_bytes", 1000), ("responses_ttl_s", 31 * 86400)):
        with pytest.raises(ConfigError, match=f"gateway.{name}"):
            load_settings({"models": [MODEL], "gateway": {name: wrong}})


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"endpoint": "127.0.0.1:4318"}, "endpoint"),
        ({"endpoint": "http://a b"}, "endpoint"),
        ({"sample": 1.5}, "sample"),
        ({"service": ""}, "service"),
        ({"prompts": True}, "prompts"),
    ],
)
def test_traces_that_are_set_wrong(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_settings({"models": [MODEL], "gateway": {"traces": wrong}})
