"""Reads and checks the config file of `octavo serve`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from octavo.config import EngineConfig, unknown_key
from octavo.errors import ConfigError, ModelError
from octavo.source import SUM, Source, check_source
from octavo_serve.api.access import read_keys
from octavo_serve.api.validation import explain
from octavo_serve.config.access import ApiKey
from octavo_serve.config.serve_schema import Application, Document
from octavo_serve.config.settings import (
    NO_EXPORTER,
    AppSettings,
    ModelSettings,
    ReplicaRange,
    deployment_name,
    load_settings,
)
from octavo_serve.config.yaml_file import read_yaml
from octavo_serve.ports import here, in_url

if TYPE_CHECKING:
    from octavo.models.spec import ModelSpec

T = TypeVar("T")
OUR_APP = "octavo_serve.app:build"
DEFAULT_PORT = 8000
DEFAULT_HOST = "127.0.0.1"  # in a config file Serve's own default is every interface
START_KEY = "octavo-serve"
"""Name of the key with which `octavo serve` tests whether the server answers."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A model that must answer before the server counts as started.

    Attributes:
        model: its name in requests.
        route: its application's route prefix; "" for the root.
        label: its name in messages, unique over all applications.
    """

    model: str
    route: str
    label: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of a config file."""

    document: dict[str, Any]  # the file, with the host and the port that will be used
    apps: list[str]
    host: str
    port: int
    awaited: list[Awaited]  # of all our applications
    settings: list[AppSettings]  # of our applications
    key: str | None  # a key that is valid in every one of our applications with keys

    @property
    def base(self) -> str:
        """The server's URL for clients on this machine."""
        scheme = "https" if self.http.get("ssl_certfile") else "http"
        return f"{scheme}://{in_url(here(self.host), self.port)}"

    @property
    def http(self) -> dict[str, Any]:
        """Serve's `http_options`."""
        options: dict[str, Any] = self.document["http_options"]
        return options

    @property
    def url(self) -> str:
        """The URL of the first of our applications."""
        return f"{self.base}{self.route}"

    @property
    def route(self) -> str:
        """Route prefix of the first of our applications; "" for the root."""
        return self.awaited[0].route

    @property
    def models(self) -> list[str]:
        """Names of the models of all our applications."""
        return [model.label for model in self.awaited]

    @property
    def logs_json(self) -> bool:
        """Whether the logs are JSON."""
        return (self.document.get("logging_config") or {}).get("encoding") == "JSON"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request that the server accepts."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    @property
    def first_shards(self) -> dict[str, int]:
        """Shards that each model starts with, by its name; those of one name count together."""
        models = [model for found in self.settings for model in found.models]
        return {name: sum(m.first_shards for m in models if m.name == name) for name in {m.name for m in models}}

    @property
    def scales(self) -> bool:
        """Whether any model autoscales."""
        return any(isinstance(model.replicas, ReplicaRange) for found in self.settings for model in found.models)


def read_plan(config: Path, port: int | None = None, host: str | None = None) -> Plan:
    """Read and check a config file alone; `check_files` checks the files that it names.

    Args:
        port, host: listen here instead of at the file's port and host.

    Raises:
        ConfigError: it is missing or not valid; the message names what.
    """
    return make_plan(read_yaml(config), config, port, host)


def make_plan(document: Any, config: Path, port: int | None = None, host: str | None = None) -> Plan:
    """The same from a document, which becomes the plan's own; files are looked for beside `config`.

    Raises:
        ConfigError: it is not valid; the message names what.
    """
    if not isinstance(document, dict) or not document:
        raise ConfigError("a config needs a list of applications; see configs/quickstart.yaml")
    asked_for = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    if isinstance(http := document.get("http_options") or {}, dict):
        said = {key: value for key, value in http.items() if key != "host" or value is not None}
        document["http_options"] = {"host": DEFAULT_HOST, "port": DEFAULT_PORT, **said, **asked_for}
    apps = _checked(document).applications
    pairs = zip(apps, document["applications"], strict=True)
    ours = [(app, found) for app, found in pairs if app.import_path == OUR_APP]
    if not ours:
        raise ConfigError(f"no application has import_path: {OUR_APP}")
    key = secrets.token_urlsafe(32)
    settings = []
    for app, found in ours:
        arguments = found.setdefault("args", {})
        find_files_beside(config, arguments)
        settings.append(_settings(app, arguments, len(ours) > 1))
        if keys := settings[-1].sealed().api_keys:
            arguments["api_keys"] = [entry.model_dump(exclude_none=True) for entry in [*keys, _start_key(key)]]
    options = document["http_options"]
    return Plan(
        document,
        [app.name for app in apps],
        options["host"],
        options["port"],
        _awaited([app for app, _ in ours], settings),
        settings,
        key if any(found.api_keys for found in settings) else None,
    )


def _checked(document: dict[str, Any]) -> Document:
    """Validate the document against Serve's schema; keys that Serve would ignore are errors."""
    try:
        checked = Document.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(error, Document, "setting")[0]) from None
    apps = checked.applications
    if (name := _twice(app.name for app in apps)) is not None:
        raise ConfigError(f"two applications are called {name!r}: give each a name of its own")
    if (route := _twice(app.route_prefix for app in apps if app.route_prefix is not None)) is not None:
        raise ConfigError(f"two applications have the route_prefix {route!r}: give each its own")
    http = checked.http_options
    if (http.ssl_certfile is None) != (http.ssl_keyfile is None):
        raise ConfigError("http_options needs both ssl_certfile and ssl_keyfile for TLS, or neither")
    return checked


def _twice(names: Iterable[str]) -> str | None:
    seen = set[str]()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _settings(app: Application, arguments: dict[str, Any], several: bool) -> AppSettings:
    try:
        settings = load_settings(arguments)
        valid = ["gateway", *(deployment_name(model.name) for model in settings.models)]
        for deployment in app.deployments:
            if (name := str(deployment.get("name"))) not in valid:
                raise ConfigError(unknown_key(name, valid, "deployment"))
    except ConfigError as error:
        raise ConfigError(f"application {app.name!r}: {error}" if several else str(error)) from None
    return settings


def _start_key(key: str) -> ApiKey:
    return ApiKey(name=START_KEY, sha256=sha256(key.encode()).hexdigest(), operator=True)


def _awaited(apps: Sequence[Application], settings: Sequence[AppSettings]) -> list[Awaited]:
    """Every model of every application with a route; several applications may have models of the same name."""
    found = []
    for app, its in zip(apps, settings, strict=True):
        if app.route_prefix is not None:
            route, others = app.route_prefix.rstrip("/"), f" ({app.name})" if len(apps) > 1 else ""
            found += [Awaited(model.name, route, model.name + others) for model in its.models]
    if not found:
        raise ConfigError("no application has a route_prefix: nothing could be asked")
    return found


def find_files_beside(config: Path, arguments: dict[str, Any]) -> None:
    """Make paths of files beside the config absolute; anything else, such as a hub id, stays as it is."""
    models, keys = arguments.get("models"), arguments.get("api_keys")
    places = [(key, "file") for key in keys or ()] if isinstance(keys, list) else []
    for model in models if isinstance(models, list) else ():
        if isinstance(model, dict):
            engine = model.get("engine")
            speculation = engine.get("speculation") if isinstance(engine, dict) else None
            places += [(model, "source"), (engine, "rehearsal"), (speculation, "draft")]
            places += [(model.get("accuracy"), name) for name in ("text", "reference")]
            places += [(model.get("lora"), name) for name in _keys(model.get("lora"))]
            for folders in (model.get("lora_folders"), model.get("weight_folders")):
                places += [(folders, index) for index in _keys(folders)]
    for where, name in places:
        written = where[name] if name in _keys(where) else None
        if isinstance(written, str) and written:
            file, mark, wanted = written.partition(SUM)
            if file and _exists(path := config.absolute().parent / file):
                where[name] = f"{path}{mark}{wanted}"


def _keys(value: object) -> Collection[Any]:
    """Of a mapping, or the indices of a list; none of anything else."""
    return value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


# ---- what the file names -----------------------------------------------------------------------------------------


def check_files(plan: Plan) -> None:
    """Check before the start that the files which the config names are on this machine; nothing is fetched or
    assembled.

    Raises:
        ConfigError: files are missing; one line each, with the setting that names it.
    """
    problems = []
    for settings in plan.settings:
        if settings.gateway.traces is not None and not _has_exporter():
            problems.append(NO_EXPORTER)
        for key in settings.api_keys:
            problems += _problem("", read_keys, Path(key.file)) if key.file else []
        for model in settings.models:
            problems += _of_model(model)
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
        problems += _missing(plan.document["http_options"].get(name), f"http_options.{name}")
    problems = problems or _not_loadable([model for settings in plan.settings for model in settings.models])
    if problems:
        raise ConfigError("\n".join(problems))


def _has_exporter() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def _of_model(model: ModelSettings) -> list[str]:
    whose = f"model {model.name!r}: "
    found = _problem(whose, check_source, model.source)
    if model.engine.draft is not None:
        found += _problem(f"{whose}speculation.draft: ", check_source, model.engine.draft)
    if model.engine.disk_cache_bytes and model.engine.disk_cache_path:
        found += _problem(f"{whose}disk_cache_path: ", _can_be_folder, Path(model.engine.disk_cache_path))
    if model.accuracy is not None:
        found += _missing(model.accuracy.text, f"{whose}accuracy.text")
        found += _problem(whose, check_source, model.accuracy.reference) if model.accuracy.reference else []
    places = {f"lora.{name}": path for name, path in model.lora.items()}
    places |= {f"lora_folders: {path}": path for path in model.lora_folders}
    places |= {f"weight_folders: {path}": path for path in model.weight_folders}
    found += [f"{whose}{name}: there is no {path!r}" for name, path in places.items() if not _exists(Path(path))]
    if model.engine.rehearsal is not None:
        from octavo.rehearsal.simulated import load_profile  # numpy

        found += _problem(whose, load_profile, model.engine.rehearsal)
    return found


def _not_loadable(models: list[ModelSettings]) -> list[str]:
    """Settings that a model's files contradict. What is wrong with the models themselves is included only if every
    model is broken: otherwise the others can be served."""
    from octavo.models.parallel import TPGroup  # numpy
    from octavo.models.source_spec import check_loadable, read_share

    wrong, broken = [], []
    for model in models:
        if model.engine.rehearsal is None and (source := check_source(model.source)) is not None:
            try:
                source = replace(source, runner=model.engine.runner)
                spec, _ = check_loadable(source, model.engine.quantization, model.engine.max_model_len)
                _check_block_fits(spec, model.engine)
                if model.tensor_parallel > 1:
                    group = TPGroup()
                    group.size = model.tensor_parallel
                    read_share(source, group)
                if model.engine.draft is not None:
                    _check_draft(source, model.engine.draft)
            except ConfigError as error:
                wrong.append(f"model {model.name!r}: {error}")
            except ModelError as error:
                broken.append(f"model {model.name!r}: {error}")
    return wrong or (broken if len(broken) == len(models) else [])


def _check_block_fits(spec: ModelSpec, engine: EngineConfig) -> None:
    """Raise ConfigError where what blocks are to be kept in holds none, whatever their type is."""
    values = spec.kv_parts * len(spec.attention_layers) * spec.kv_size * engine.block_size
    for name in ("disk_cache_bytes", "host_cache_bytes"):
        given = getattr(engine, name)
        if given and spec.encoder is None and given < values:
            raise ConfigError(f"{name} {given} holds no block, which takes {values} bytes at least: raise it")


def _check_draft(source: Source, name: str) -> None:
    """Raise ConfigError where a draft model that is on this machine has another tokenizer."""
    from octavo.text.tokenizer import check_draft, load_tokenizer  # its library takes 0.1 s

    if (draft := check_source(name)) is not None:
        check_draft(load_tokenizer(source), source.name, draft)


def _problem(whose: str, look: Callable[[T], object], at: T) -> list[str]:
    try:
        look(at)
    except (ConfigError, ModelError) as error:
        return [f"{whose}{error}"]
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, or ~ of nobody
        return [f"{whose}{str(at)[:80]!r} cannot be looked at: {error}"]
    return []


def _can_be_folder(path: Path) -> None:
    """Raise ConfigError unless a folder is there, or can be made, in which this process may write."""
    near = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not near.is_dir():
        raise ConfigError(f"{str(near)!r} is no folder")
    if not os.access(near, os.W_OK | os.X_OK):
        raise ConfigError(f"this user may not write in {str(near)!r}")


def _missing(file: str | None, what: str) -> list[str]:
    def look(file: str) -> None:
        if not Path(file).expanduser().is_file():
            raise ConfigError(f"there is no file {file!r}")

    return [] if file is None else _problem(f"{what}: ", look, file)
