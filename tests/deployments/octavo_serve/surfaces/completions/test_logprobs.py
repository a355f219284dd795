"""Log probabilities in the older form."""

from __future__ import annotations

import math
from typing import Any

from octavo.request import Logprob
from octavo_serve.surfaces.completions.logprobs import completion_logprobs, joined_logprobs

TEXTS = {1: "a", 2: "b", 7: "\ufffd", 8: "\ufffd", 9: "\ufffd"}


class Names:
    def token_text(self, token_id: int) -> str:
        return TEXTS[token_id]


NAMES: Any = Names()


def test_tokens_that_share_a_text_are_told_apart_by_their_ids() -> None:
    found = completion_logprobs([8], [{7: Logprob(-0.5, 1), 8: Logprob(-1.0, 2), 9: Logprob(-2.0, 3)}], NAMES, [0])
    assert found["top_logprobs"] == [{"token_id:7": -0.5, "\ufffd": -1.0, "token_id:9": -2.0}]  # the chosen keeps it
    found = completion_logprobs([1], [{7: Logprob(-0.5, 1), 8: Logprob(-1.0, 2), 1: Logprob(-2.0, 3)}], NAMES, [0])
    assert found["top_logprobs"] == [{"\ufffd": -0.5, "token_id:8": -1.0, "a": -2.0}]  # else the likeliest does


def test_a_first_prompt_token_has_none_and_minus_infinity_is_a_number() -> None:
    found = completion_logprobs([1, 2], [None, {2: Logprob(-math.inf, 4)}], NAMES, [0, 1])
    (none, value) = found["token_logprobs"]
    assert none is None
    assert value is not None
    assert math.isfinite(value)


def test_parts_add_up() -> None:
    entries: list[Any] = [{1: Logprob(-0.5, 1)}, {2: Logprob(-0.25, 1)}]
    whole = completion_logprobs([1, 2], entries, NAMES, [0, 1])
    parts = [completion_logprobs([i + 1], [entry], NAMES, [i]) for i, entry in enumerate(entries)]
    assert joined_logprobs(parts) == whole
