"""Anthropic's error bodies, as its SDK types them."""

from __future__ import annotations

import pytest
from anthropic.types.shared.error_response import ErrorResponse
from pydantic import TypeAdapter

from octavo_serve.api.failures import Failure
from octavo_serve.surfaces.messages.errors import ERRORS, error_body


@pytest.mark.parametrize(
    ("status", "shown", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 401, "authentication_error"),
        (403, 403, "permission_error"),
        (404, 404, "not_found_error"),
        (429, 529, "overloaded_error"),
        (500, 500, "api_error"),
        (503, 503, "api_error"),
    ],
)
def test_each_status_has_its_type(status: int, shown: int, kind: str) -> None:
    parsed = TypeAdapter(ErrorResponse).validate_python(error_body(Failure(status, "so")))
    assert (parsed.error.type, parsed.error.message, parsed.type) == (kind, "so", "error")
    assert not parsed.model_extra
    assert ERRORS.status(status) == shown


def test_a_body_that_is_too_large_and_other_refusals() -> None:
    assert error_body(Failure(413, "so"))["error"]["type"] == "request_too_large"
    assert error_body(Failure(405, "so"))["error"]["type"] == "invalid_request_error"


def test_clients_know_a_prompt_that_is_too_long() -> None:
    failure = Failure(400, "the prompt has 9 tokens", "context_length_exceeded")
    assert error_body(failure)["error"]["message"] == "prompt is too long: the prompt has 9 tokens"


def test_a_tools_schema_has_the_name_that_clients_know() -> None:
    body = error_body(Failure(400, "tools.3.function.parameters.type is wrong"))
    assert body["error"]["message"] == "tools.3.input_schema.type is wrong"
