"""Serves on a Ray cluster that somebody else started: existing applications stay untouched, and only our own are
removed at the end.

Serve's config files are declarative: deploying one deletes every application of an earlier config and replaces those of
the same name. Therefore our applications are run one by one, as from Python, after a check that they do not collide
with existing ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import ConfigError


def collision(wanted: Sequence[Mapping[str, Any]], there: Mapping[str, str | None]) -> str | None:
    """Why applications cannot be added to the existing ones; None if they can.

    Args:
        wanted: the config's applications.
        there: existing applications, name -> route prefix.
    """
    for app in wanted:
        name, route = app.get("name", "default"), app.get("route_prefix", "/")
        if name in there:
            return (
                f"the cluster has an application called {name!r} already: give yours another name, or delete that one"
            )
        for other, taken in there.items():
            if route is not None and taken == route:
                return f"{other!r} on that cluster answers at {route} already: give {name!r} another route_prefix"
        for key in ("runtime_env", "deployments"):
            if app.get(key):
                return f"application {name!r}: {key} is not possible with --address; use `serve deploy` for it"
    return None


def refuse_what_is_in_the_way(document: Mapping[str, Any]) -> None:
    """Connect to Serve on the cluster that this process is connected to, or start it there.

    Raises:
        ConfigError: the config's applications cannot be added.
    """
    from ray.serve.schema import ServeDeploySchema

    from octavo_serve.ray_private import start_serve

    config = ServeDeploySchema.model_validate(document)
    client = start_serve(config)
    there = client.get_serve_details()["applications"]
    if reason := collision(document["applications"], {name: app.get("route_prefix") for name, app in there.items()}):
        raise ConfigError(reason)
    if (port := client.http_config.port) != config.http_options.port:
        raise ConfigError(f"Serve on that cluster listens on port {port}: pass --port {port}")


def deploy(document: Mapping[str, Any]) -> None:
    """Add a config's applications."""
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    apps = ServeDeploySchema.model_validate(document).applications
    serve.run_many([_target(app) for app in apps], wait_for_applications_running=False)


def _target(app: Any) -> Any:
    from ray import serve

    from octavo_serve.ray_private import built

    return serve.RunTarget(built(app), name=app.name, route_prefix=app.route_prefix, logging_config=app.logging_config)


def delete(apps: Sequence[str]) -> None:
    """Delete the applications that this command has added."""
    from ray import serve

    for app in apps:
        with contextlib.suppress(Exception):  # the application or the cluster may be gone
            serve.delete(app, _blocking=False)
