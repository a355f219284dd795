"""What each error tells the client."""

from __future__ import annotations

import pytest

from octavo.errors import BadRequest, EngineDead, ModelNotReady, OctavoError, Overloaded, PromptTooLong, UnknownModel
from octavo_serve.api.failures import BodyTooLarge, Failure, failure_of


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (BadRequest("no", "n"), Failure(400, "no", None, "n")),
        (PromptTooLong("long", "prompt"), Failure(400, "long", "context_length_exceeded", "prompt")),
        (UnknownModel("who", "model"), Failure(404, "who", "model_not_found", "model")),
        (BodyTooLarge("big"), Failure(413, "big", "body_too_large")),
        (
            Overloaded("full", 2.3),
            Failure(429, "full", "overloaded", headers={"Retry-After": "3", "retry-after-ms": "2300"}),
        ),
        (
            Overloaded("full", 0.0),
            Failure(429, "full", "overloaded", headers={"Retry-After": "1", "retry-after-ms": "1"}),
        ),
        (ModelNotReady("failed"), Failure(503, "failed", "model_not_ready")),
        (EngineDead("gone"), Failure(503, "gone", "engine_dead")),
        (OctavoError("odd"), Failure(500, "odd")),
        (RuntimeError("a secret"), Failure(500, "internal server error; the server's log says more")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error(error: Exception, failure: Failure) -> None:
    assert failure_of(error) == failure
