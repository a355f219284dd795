"""The config file of `octavo serve`: read, checked, and what the command must know of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from octavo.errors import ConfigError
from octavo_serve.settings import ReplicaRange, load_settings

OUR_APP = "octavo_serve.app:build"
DEFAULT_PORT = 8000


@dataclass(frozen=True, slots=True)
class Plan:
    """What a config file asks for."""

    document: dict[str, Any]  # the file, with the port that will be used
    apps: list[str]
    host: str
    port: int
    models: list[str]
    route: str  # of the first of our applications, "" for the root
    scales: bool  # whether the load decides how many shards some model has

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}{self.route}"


def read_plan(config: Path, port: int | None = None) -> Plan:
    """Read and check a config file.

    Args:
        port: listen here instead of the file's port.

    Raises:
        ConfigError: it is missing or not valid; the message names what.
    """
    try:
        document = yaml.safe_load(config.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("applications"), list):
        raise ConfigError("a config needs a list of applications; see configs/quickstart.yaml")
    apps = [app if isinstance(app, dict) else {} for app in document["applications"]]
    ours = [(app, load_settings(app.get("args") or {})) for app in apps if app.get("import_path") == OUR_APP]
    if not ours:
        raise ConfigError(f"no application has import_path: {OUR_APP}")
    http: dict[str, Any] = document.get("http_options") or {}
    port = port or http.get("port", DEFAULT_PORT)
    document["http_options"] = {**http, "port": port}
    for app, _ in ours:
        find_files_beside(config, app["args"])
    first, settings = ours[0]
    return Plan(
        document,
        [str(app.get("name", "default")) for app in apps],
        str(http.get("host", "0.0.0.0")),
        port,
        [model.name for model in settings.models],
        str(first.get("route_prefix") or "/").rstrip("/"),
        any(isinstance(model.replicas, ReplicaRange) for _, found in ours for model in found.models),
    )


def find_files_beside(config: Path, arguments: dict[str, Any]) -> None:
    """Make paths absolute that name files beside the config: what is none, such as a hub id, stays as it is."""
    for model in arguments["models"]:
        places = [(model, "source"), (model.get("engine") or {}, "rehearsal")]
        places += [(model.get("accuracy") or {}, name) for name in ("text", "reference")]
        for where, name in places:
            path = config.absolute().parent / Path(str(where.get(name, "")))
            if where.get(name) and path.exists():
                where[name] = str(path)
