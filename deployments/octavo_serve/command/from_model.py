"""The config that `octavo serve MODEL --settings` stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from octavo.errors import ConfigError, ModelError
from octavo.source import PACKAGE, SUM, check_source, resolve_source
from octavo_serve.command.flags import read_words
from octavo_serve.command.machine import num_gpus
from octavo_serve.command.packaged import quickstart
from octavo_serve.config.config_file import DEFAULT_HOST, DEFAULT_PORT, OUR_APP, find_files_beside
from octavo_serve.config.reference import Path as Place
from octavo_serve.config.yaml_file import read_yaml

_CONFIGS = ".yaml", ".yml"
_MODELS = ".gguf", ".safetensors", ".bin", ".pt", ".pth"


def is_config(name: str) -> bool:
    """Whether this names a config file and no model."""
    path = Path(name)
    return path.suffix in _CONFIGS or (path.is_file() and path.suffix not in _MODELS)


def asked_for(
    words: Sequence[str], known: Sequence[str], host: str | None, port: int | None
) -> tuple[Path, dict[str, Any] | None]:
    """The config file that the words name; or the model's name, and the config that it stands for with its flags.

    Args:
        known: the command's other flags.

    Raises:
        ConfigError: a flag is unknown or wrong, or stands beside a config.
    """
    said = read_words(words, known)
    if said.what is None or not is_config(said.what):
        return Path(said.what or "quickstart"), document_of(said.what, said.given, host, port)
    if said.given:
        names = ", ".join(".".join(path) for path in said.given)
        raise ConfigError(f"settings stand in the config, not beside it: write {names} into {said.what}")
    return Path(said.what), None


def document_of(
    model: str | None, given: Mapping[Place, Any], host: str | None = None, port: int | None = None
) -> dict[str, Any]:
    """The config for one model, or for the quickstart's, with settings by their paths.

    Files are named by absolute paths, so that it says the same wherever it is saved.

    Raises:
        ConfigError: the quickstart's config cannot be read.
    """
    document = read_yaml(quickstart()) if model is None else _config(model)
    arguments = document["applications"][0]["args"]
    (served,) = arguments["models"]
    for path, value in given.items():
        _put(served if path[0] == "models" else document if path[0] == "http_options" else arguments, path, value)
    _name_names(served)
    if "api_keys" in arguments:
        arguments["api_keys"] = _keys(arguments["api_keys"])
    if model is not None and "num_gpus" not in served and served.get("engine", {}).get("device") != "cpu":
        served |= {"num_gpus": 1} if num_gpus() else {}  # Ray hides GPUs from what has not asked for one
    asked = {"host": host, "port": port}
    document["http_options"] |= {name: value for name, value in asked.items() if value is not None}
    find_files_beside(Path("config.yaml"), arguments)
    return document


def _config(model: str) -> dict[str, Any]:
    arguments = {"models": [{"name": name_of(model), "source": model}]}
    application = {"name": "octavo", "route_prefix": "/", "import_path": OUR_APP, "args": arguments}
    return {"http_options": {"host": DEFAULT_HOST, "port": DEFAULT_PORT}, "applications": [application]}


def fetch(document: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Fetch the model of a hub id that is not on this machine: before Ray starts, and where its progress is seen.

    Raises:
        ConfigError: it cannot be had.
    """
    source = document["applications"][0]["args"]["models"][0]["source"]
    try:
        if not source.startswith(PACKAGE) and check_source(source) is None:
            say(f"Looking for {source} in the hub's cache and at the hub")
            resolve_source(source)
    except ModelError as error:
        raise ConfigError(str(error)) from error


def name_of(model: str) -> str:
    """What requests call a model where nobody has said: a hub id as it stands, as in vLLM; of a path the last part."""
    plain = model.partition(SUM)[0]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", plain) and not Path(plain).exists() and not plain.endswith(".gguf"):
        return plain
    file = plain.removeprefix(PACKAGE) if plain.startswith(PACKAGE) else Path(plain).expanduser().absolute()
    return Path(file).name.removesuffix(".gguf") or "model"


def _put(target: dict[str, Any], path: Place, value: Any) -> None:
    """Set what is at a path; what lies above it becomes a mapping."""
    *above, last = path[1:] if path[0] == "models" else path
    for name in above:
        if not isinstance(target.get(name), dict):
            target[name] = {}
        target = target[name]
    target[last] = value


def _name_names(served: dict[str, Any]) -> None:
    """The first of several names is the model's; the others become aliases."""
    if isinstance(served["name"], list):
        served["name"], *others = served["name"]
        if others:
            served["aliases"] = [*others, *served.get("aliases", [])]


def _keys(given: Sequence[Any]) -> list[Any]:
    """Entries for keys that were typed: they are not to stand in a file, nor in a log."""
    return [
        {"name": "command-line", "sha256": sha256(key.encode("utf-8", "surrogateescape")).hexdigest()}
        if isinstance(key, str)
        else key
        for key in given
    ]


def as_yaml(document: Mapping[str, Any]) -> str:
    """The config as a file to save."""
    return (
        f"# saved as model.yaml: octavo serve model.yaml\n{yaml.safe_dump(dict(document), sort_keys=False, width=120)}"
    )
