"""TEI's error body."""

from __future__ import annotations

from octavo_serve.api.failures import Failure
from octavo_serve.api.surface import Errors
from octavo_serve.surfaces.tei.schemas import ErrorBody

_TYPES = {429: "Overloaded", 503: "Unhealthy"}


def error_body(failure: Failure) -> ErrorBody:
    """A failure in TEI's error format."""
    kind = _TYPES.get(failure.status, "Backend" if failure.status >= 500 else "Validation")
    return {"error": failure.message, "error_type": kind}


ERRORS = Errors(ErrorBody, error_body, {400: 422})
