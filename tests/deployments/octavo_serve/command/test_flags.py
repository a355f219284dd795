"""Flags: settings under their own names and vLLM's, read as the settings' types need it."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo_serve.command.flags import flags, read_words


@pytest.mark.parametrize(
    ("typed", "path", "value"),
    [
        ("--max-model-len 4096", ("models", "engine", "max_model_len"), 4096),
        ("--max_model_len=4096", ("models", "engine", "max_model_len"), 4096),
        ("--target-itl 1e-1", ("models", "engine", "target_itl"), 0.1),  # which YAML takes for a text
        ("--dtype bfloat16", ("models", "engine", "dtype"), "bfloat16"),
        ("--device 0", ("models", "engine", "device"), "0"),
        ("--enforce-eager", ("models", "engine", "enforce_eager"), True),
        ("--no-enable-prefix-caching", ("models", "engine", "enable_prefix_caching"), False),
        ("--disclose=false", ("disclose",), False),
        ("--no-disclose=false", ("disclose",), True),
        ("-tp 2", ("models", "tensor_parallel"), 2),
        ("--tensor-parallel-size 2", ("models", "tensor_parallel"), 2),
        ("--data-parallel-size 3", ("models", "replicas"), 3),
        ("--replicas {max:4}", ("models", "replicas"), {"max:4": None}),  # no mapping in YAML without a space
        ('--replicas {"max":4}', ("models", "replicas"), {"max": 4}),
        ("--replicas.max 4", ("models", "replicas", "max"), 4),
        ("--gateway.max-n 4", ("gateway", "max_n"), 4),
        ("--speculation", ("models", "engine", "speculation"), True),
        ("--speculation.draft a.gguf", ("models", "engine", "speculation", "draft"), "a.gguf"),
        ("--router.policy round_robin", ("router", "policy"), "round_robin"),
        ("--cors-origins https://a --cors-origins https://b", ("cors_origins",), ["https://a", "https://b"]),
        ('--allowed-origins ["https://a"]', ("cors_origins",), ["https://a"]),
        ("--served-model-name 7", ("models", "name"), ["7"]),
        ("--override-generation-config.top-k -1", ("models", "override_generation_config", "top_k"), -1),
    ],
)
def test_a_flag_sets_what_a_config_would(typed: str, path: tuple[str, ...], value: Any) -> None:
    said = read_words(["org/model", *typed.split()])
    assert said.what == "org/model"
    assert said.given == {path: value}


def test_the_model_may_stand_anywhere() -> None:
    for words in (["--enforce-eager", "m.gguf"], ["--threads", "2", "m.gguf"], ["--model", "m.gguf"]):
        assert read_words(words).what == "m.gguf"
    assert read_words([]).what is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max-model-length", "1"], "did you mean --max-model-len?"),
        (["--prot", "8001"], "did you mean --port?"),
        (["--utterly-strange"], "octavo serve --settings lists all"),
        (["--tool-call-parser", "hermes"], "--response-template names one"),
        (["--speculative-config", "{}"], "--speculation.draft"),
        (["--threads"], "--threads needs a value"),
        (["--enforce-eager=maybe"], "is true or false, not 'maybe'"),
        (["a", "b"], "one model or one config at a time"),
        (["--api-keys", "[{name"], "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_words(words, ["--port"])
    assert sentence in str(error.value)


def test_what_only_holds_others_is_no_flag() -> None:
    entries = {"api_keys.key", "tenants.weight", "aliases.weight"}
    assert not {"gateway", "router", "engine", "models", *entries} & set(flags())
    assert {"gateway.replicas", "replicas", "num_gpus", "api_keys", "max_num_seqs"} <= set(flags())
