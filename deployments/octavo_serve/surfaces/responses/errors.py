"""The error body of /v1/responses: OpenAI's, in the fields' names there."""

from __future__ import annotations

from dataclasses import replace

from octavo_serve.api.failures import Failure
from octavo_serve.surfaces.openai import errors

_NAMES = {"max_tokens": "max_output_tokens", "logprobs": "top_logprobs", "messages": "input"}
"""Fields as chats have them."""


def named(failure: Failure) -> Failure:
    """A failure in the names of this protocol's fields."""
    return failure.renamed(_NAMES)


ERRORS = replace(errors.ERRORS, body=lambda failure: errors.error_body(named(failure)))
