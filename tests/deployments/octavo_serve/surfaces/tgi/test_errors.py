"""TGI's words for failures."""

from __future__ import annotations

import pytest

from octavo_serve.api.failures import Failure
from octavo_serve.surfaces.tgi.errors import ERRORS, error_body


@pytest.mark.parametrize(
    ("status", "answered", "kind"),
    [(400, 422, "validation"), (413, 413, "validation"), (429, 429, "overloaded"), (503, 503, "generation")],
)
def test_types(status: int, answered: int, kind: str) -> None:
    assert ERRORS.status(status) == answered
    assert error_body(Failure(status, "ask for fewer max_tokens")) == {
        "error": "ask for fewer max_new_tokens",
        "error_type": kind,
    }
