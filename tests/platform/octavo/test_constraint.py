from __future__ import annotations

import pytest

from octavo.constraint import MAX_GRAMMAR, Grammar
from octavo.errors import BadRequest


def test_a_grammar_that_is_too_long_is_refused() -> None:
    with pytest.raises(BadRequest, match="guided_json makes a grammar of 524289 characters; at most 524288"):
        Grammar(source="x" * (MAX_GRAMMAR + 1), param="guided_json")
