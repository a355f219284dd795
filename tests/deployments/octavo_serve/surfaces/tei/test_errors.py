"""TEI's words for failures."""

from __future__ import annotations

from octavo_serve.api.failures import Failure
from octavo_serve.surfaces.tei.errors import ERRORS


def test_kinds() -> None:
    kinds = {status: ERRORS.body(Failure(status, "a"))["error_type"] for status in (400, 404, 429, 500, 503)}
    assert list(kinds.values()) == ["Validation", "Validation", "Overloaded", "Backend", "Unhealthy"]
    assert (ERRORS.status(400), ERRORS.status(429)) == (422, 429)
