"""The keys that Serve (2.60) accepts in a config file, with their types. Serve itself ignores unknown keys.

Serve's own schema (`ray.serve.schema.ServeDeploySchema`) is not used: importing it takes a second, and it does not
report a misspelt key. A test compares these classes with it.
"""

from __future__ import annotations

import logging
import re
from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from octavo_serve.config.base import Seconds, Settings

Port = Annotated[int, Field(ge=1, le=65_535)]


def _host(value: str) -> str:
    """A host name or an address; digits and dots alone, or anything with a colon, must be a valid address."""
    try:
        if not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z_-][A-Za-z0-9_.-]*", value):
            ip_address(value)
    except ValueError:
        raise ValueError(f"a host is a name or an address, without a scheme or a port, got {value!r}") from None
    return value


class HttpOptions(Settings):
    """Where and how Serve's HTTP servers listen."""

    host: Annotated[str, AfterValidator(_host)] | None = None
    port: Port = 8000
    root_path: str = ""
    request_timeout_s: Seconds | None = None
    keep_alive_timeout_s: Annotated[int, Field(ge=0)] = 90
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None


class GrpcOptions(Settings):
    """The same for Serve's gRPC server, which Octavo does not use."""

    port: Port = 9000
    grpc_servicer_functions: list[str] = Field(default_factory=list)
    enable_reflection: bool = False
    request_timeout_s: Seconds | None = None


def _level(value: int | str) -> int | str:
    names = logging.getLevelNamesMapping()
    if value not in (names if isinstance(value, str) else names.values()):
        raise ValueError(f"a log_level is one of {', '.join(names)}, got {value!r}")
    return value


class LoggingConfig(Settings):
    """Logging of Serve's processes."""

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: Annotated[int | str, AfterValidator(_level)] = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = Field(default_factory=list)


def _route(value: str) -> str:
    if not value.startswith("/") or (value.endswith("/") and value != "/") or "{" in value or "}" in value:
        raise ValueError(f"a route_prefix begins with / and does not end with one, got {value!r}")
    return value


class Application(Settings):
    """One application."""

    name: Annotated[str, Field(min_length=1)] = "default"
    route_prefix: Annotated[str, AfterValidator(_route)] | None = "/"
    import_path: Annotated[str, Field(min_length=1)]
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    args: dict[str, Any] = Field(default_factory=dict)
    deployments: list[dict[str, Any]] = Field(default_factory=list)
    autoscaling_policy: dict[str, Any] | None = None
    logging_config: LoggingConfig | None = None
    external_scaler_enabled: bool = False


class Document(Settings):
    """A whole config file."""

    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = "EveryNode"
    http_options: HttpOptions = Field(default_factory=HttpOptions)
    grpc_options: GrpcOptions = Field(default_factory=GrpcOptions)
    controller_options: dict[str, Any] | None = None
    logging_config: LoggingConfig | None = None
    tracing_config: dict[str, Any] | None = None
    applications: Annotated[list[Application], Field(min_length=1)]
    target_capacity: Annotated[float, Field(ge=0, le=100)] | None = None
