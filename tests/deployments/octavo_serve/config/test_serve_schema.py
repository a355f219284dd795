"""What Serve takes in a config file, held against its own schema."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from octavo_serve.config.serve_schema import Application, Document, GrpcOptions, HttpOptions, LoggingConfig


def test_serve_takes_these_keys() -> None:
    """What Serve's next version takes must be let through, and what it no longer takes refused."""
    from ray.serve import schema

    pairs = [
        (Document, schema.ServeDeploySchema),
        (HttpOptions, schema.HTTPOptionsSchema),
        (GrpcOptions, schema.gRPCOptionsSchema),
        (LoggingConfig, schema.LoggingConfig),
        (Application, schema.ServeApplicationSchema),
    ]
    for ours, theirs in pairs:
        fields = set(theirs.model_fields) - ({"host", "port"} if ours is Application else set())  # of http_options
        assert set(ours.model_fields) == fields, ours


@pytest.mark.parametrize(
    ("kind", "name", "good", "bad"),
    [
        (HttpOptions, "host", ["127.0.0.1", "::1", "localhost", "a-b.example.com", "_x"],
         ["http://a", "a:80", "1.2.3", "1.2.3.4.5", "", "a b"]),
        (HttpOptions, "port", [1, 65_535], [0, 65_536, "8000"]),
        (Application, "route_prefix", ["/", "/v1", None], ["", "v1", "/v1/", "/{x}"]),
        (LoggingConfig, "log_level", ["INFO", 20], ["LOUD", 21]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_values_that_serve_would_stumble_over(kind: Any, name: str, good: list[Any], bad: list[Any]) -> None:
    needed = {"import_path": "a:b"} if kind is Application else {}
    for value in good:
        assert getattr(kind(**needed | {name: value}), name) == value
    for value in bad:
        with pytest.raises(ValidationError):
            kind(**needed | {name: value})
