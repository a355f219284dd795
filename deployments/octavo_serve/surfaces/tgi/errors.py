"""TGI's error body."""

from __future__ import annotations

from octavo_serve.api.failures import Failure
from octavo_serve.api.surface import Errors
from octavo_serve.surfaces.tgi.schemas import ErrorBody

_TYPES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "overloaded"}


def error_body(failure: Failure) -> ErrorBody:
    """A failure in TGI's error format, with its name for the field that is another's here."""
    kind = _TYPES.get(failure.status, "generation" if failure.status >= 500 else "validation")
    return {"error": failure.renamed({"max_tokens": "max_new_tokens"}).message, "error_type": kind}


ERRORS = Errors(ErrorBody, error_body, {400: 422})
