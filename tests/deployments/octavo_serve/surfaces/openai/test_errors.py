"""OpenAI's error body: its type follows the status."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from octavo_serve.api.failures import Failure
from octavo_serve.surfaces.openai.errors import ERRORS, error_body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "service_unavailable_error"),
    ],
)
def test_the_type_is_that_of_the_status(status: int, kind: str) -> None:
    body = error_body(Failure(status, "no", code="code", param="field"))
    assert body == {"error": {"message": "no", "type": kind, "param": "field", "code": "code"}}
    assert TypeAdapter(ERRORS.kind).validate_python(body) == body
