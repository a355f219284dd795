"""The error body of KServe and Triton."""

from __future__ import annotations

from octavo_serve.api.failures import Failure
from octavo_serve.api.surface import Errors
from octavo_serve.surfaces.kserve.schemas import ErrorBody


def error_body(failure: Failure) -> ErrorBody:
    """A failure's sentence."""
    return {"error": failure.message}


ERRORS = Errors(ErrorBody, error_body)
