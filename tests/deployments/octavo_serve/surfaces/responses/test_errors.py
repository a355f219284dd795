"""Errors in the names of the protocol's fields."""

from __future__ import annotations

from octavo_serve.api.failures import Failure
from octavo_serve.surfaces.responses.errors import ERRORS


def _told(message: str, param: str | None = None) -> tuple[str, str | None]:
    error = ERRORS.body(Failure(400, message, param=param))["error"]
    return error["message"], error["param"]


def test_fields_of_chats_have_the_names_that_responses_have() -> None:
    assert _told("9 tokens and max_tokens asks", "max_tokens") == (
        "9 tokens and max_output_tokens asks",
        "max_output_tokens",
    )
    assert _told("the template refuses these messages", "messages") == ("the template refuses these messages", "input")
    unknown = "unknown field 'max_tokens'; did you mean 'max_output_tokens'?", "max_tokens"
    assert _told(*unknown) == unknown
    kept = "reasoning.max_tokens must be at least 0", "reasoning.max_tokens"
    assert _told(*kept) == kept
