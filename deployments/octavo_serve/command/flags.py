"""The flags of `octavo serve MODEL`: every setting of a config under its own name, and vLLM's names where they mean the
same.

A model's and its engine's settings, and those of the application, are flags as they stand in a config, such as
`--max-model-len`; what lies deeper has dots (`--replicas.max`, `--gateway.max-n`). Hyphens and underscores are one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from octavo.errors import ConfigError
from octavo_serve.config.reference import Path, Setting, settings
from octavo_serve.config.yaml_file import parse_yaml

_OTHER_NAMES = {
    "model": ("models", "source"),
    "tensor_parallel_size": ("models", "tensor_parallel"),
    "tp": ("models", "tensor_parallel"),
    "data_parallel_size": ("models", "replicas"),
    "kv_cache_memory_bytes": ("models", "engine", "kv_cache_bytes"),
    "allowed_origins": ("cors_origins",),
    "model_impl": ("models", "engine", "runner"),
    "otlp_traces_endpoint": ("gateway", "traces", "endpoint"),
}
"""vLLM's names of settings that have another one here."""

_NOT_HERE = {
    "trust_remote_code": "no code that comes with a model is run",
    "enable_auto_tool_choice": "tools need no switch",
    "tool_call_parser": "a model's form of calls is known from its template or family; --response-template names one",
    "reasoning_parser": "what is reasoning is known from a model's template or family; --response-template names one",
    "enable_chunked_prefill": "prompts are always computed in chunks; --max-num-batched-tokens says of how many tokens",
    "pipeline_parallel_size": "models are split by --tensor-parallel-size alone",
    "chat_template": "a model's own template is used",
    "enable_lora": "adapters need no switch: --lora names them",
    "max_lora_rank": "any rank up to 256 is taken: --lora-bytes bounds their memory",
    "max_loras": "as many adapters share a step as there are: --lora-bytes bounds their memory",
    "speculative_config": "--speculation sets whether tokens are guessed, --speculation.draft by which smaller model",
}
"""Flags of vLLM's that people will type, and what to say."""

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag.

    Attributes:
        name: as it is typed, without the leading hyphens.
        path: of what it sets, below `args`; of Serve's HTTP options below "http_options".
        kinds, default, says: as of a `Setting`.
    """

    name: str
    path: Path
    kinds: tuple[type[Any] | str, ...]
    default: Any
    says: str

    @property
    def is_switch(self) -> bool:
        return bool in self.kinds

    @property
    def is_list(self) -> bool:
        return list in self.kinds

    @property
    def is_text(self) -> bool:
        """Whether what is typed is taken as it stands: a text, one of several words, an entry."""
        return all(kind in (str, list, type(None)) or isinstance(kind, str) for kind in self.kinds)


_OWN = (
    Flag("served-model-name", ("models", "name"), (list, str), None, "its name in requests; once more for an alias."),
    Flag("api-key", ("api_keys",), (list, str), None, "a key that requests need; the config then holds its SHA-256."),
    Flag("ssl-certfile", ("http_options", "ssl_certfile"), (str,), None, "the certificate for TLS."),
    Flag(
        "speculation.draft",
        ("models", "engine", "speculation", "draft"),
        (str,),
        None,
        "a smaller model of the same tokenizer that guesses tokens.",
    ),
    Flag("ssl-keyfile", ("http_options", "ssl_keyfile"), (str,), None, "its key."),
)


@cache
def flags() -> dict[str, Flag]:
    """Every flag by its name, with underscores."""
    found = {_plain(flag.name): flag for flag in _OWN}
    by_path = {setting.path: setting for setting in settings()}
    for path, setting in by_path.items():
        if (name := _name(path)) is not None and not _in_a_list(path):
            found.setdefault(name, _flag(name, setting))
    return found | {name: _flag(name, by_path[path]) for name, path in _OTHER_NAMES.items()}


def _flag(name: str, setting: Setting) -> Flag:
    return Flag(name.replace("_", "-"), setting.path, setting.kinds, setting.default, setting.says)


def _name(path: Path) -> str | None:
    """A setting's name as a flag; None for those that are only a place for others."""
    short = path[1:] if path[0] == "models" else path
    short = short[1:] if short[:1] == ("engine",) else short
    return ".".join(short) if short and path not in (("gateway",), ("router",)) else None


def _in_a_list(path: Path) -> bool:
    """Whether it is a setting of one entry among several: these are written as a whole."""
    lists = ("api_keys",), ("tenants",), ("models", "aliases")
    return any(path[: len(place)] == place and path != place for place in lists)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Said:
    """What was typed: a config or a model, if any, and the settings by their paths."""

    what: str | None
    given: dict[Path, Any]


def read_words(words: Iterable[str], known: Iterable[str] = ()) -> Said:
    """Tell the model from the flags, and read these.

    Args:
        known: other flags of the command, for the suggestion that an unknown one gets.

    Raises:
        ConfigError: a flag is unknown or has no value, or there are two models.
    """
    left, given, what = iter(words), dict[Path, Any](), list[str]()
    for word in left:
        if word.startswith("-") and len(word) > 1:
            _take(word, left, given, list(known))
        else:
            what.append(word)
    what += [given.pop(("models", "source"))] if ("models", "source") in given else []
    if len(what) > 1:
        raise ConfigError(f"one model or one config at a time, not {' and '.join(map(repr, what))}")
    return Said(what[0] if what else None, given)


def _take(word: str, left: Iterator[str], given: dict[Path, Any], known: list[str]) -> None:
    name, mark, value = word.partition("=")
    flag, on = _find(_plain(name), known)
    if flag.is_switch:
        given[flag.path] = _switch(flag, value.lower() if mark else "true") is on
        return
    if not mark and (value := next(left, "")) == "":
        raise ConfigError(f"--{flag.name} needs a value")
    whole = flag.is_list and value.startswith("[")
    found = _value(value) if whole or not flag.is_text else value
    if flag.is_list and not isinstance(found, list):
        before = given.get(flag.path)
        found = [*(before if isinstance(before, list) else []), found]
    given[flag.path] = found


def _find(name: str, known: list[str]) -> tuple[Flag, bool]:
    """A flag, and whether it was named itself: False for its `--no-`."""
    if name in flags():
        return flags()[name], True
    if (off := flags().get(name.removeprefix("no_"))) is not None and off.is_switch:
        return off, False
    shown = f"--{name.replace('_', '-')}"
    if name in _NOT_HERE:
        raise ConfigError(f"there is no {shown}: {_NOT_HERE[name]}")
    names = [*flags(), *map(_plain, known)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean --{near[0].replace('_', '-')}?" if near else "octavo serve --settings lists all"
    raise ConfigError(f"there is no {shown}: {hint}")


def _switch(flag: Flag, value: str) -> bool:
    if value not in (*_TRUE, *_FALSE):
        raise ConfigError(f"--{flag.name} is true or false, not {value!r}")
    return value in _TRUE


def _value(text: str) -> Any:
    """A value as JSON or YAML has it: `1e-3` is a number in the first alone, `{max: 4}` a mapping in the second."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return parse_yaml(text.encode("utf-8", "surrogateescape"))
