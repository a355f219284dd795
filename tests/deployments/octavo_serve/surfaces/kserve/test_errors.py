"""An error is one sentence."""

from __future__ import annotations

from octavo_serve.api.failures import Failure
from octavo_serve.surfaces.kserve.errors import error_body


def test_the_body() -> None:
    assert error_body(Failure(429, "the queue is full", "overloaded")) == {"error": "the queue is full"}
