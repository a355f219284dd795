"""Contents as text."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.surfaces.decisions.schemas import JsonPart, OutputText, RefusalPart, TextPart
from octavo_serve.surfaces.decisions.text import json_text, text_of


def test_parts_are_lines() -> None:
    parts = [
        TextPart(type="input_text", text="Look:"),
        JsonPart(type="input_json", data={"ä": [1, 2.5, None, True]}),
        OutputText(type="output_text", text="a\nb"),
        RefusalPart(type="refusal", refusal="No."),
    ]
    assert text_of(parts, "input[0]") == 'Look:\n{"ä":[1,2.5,null,true]}\na\nb\nNo.'
    assert text_of("plain", "input") == "plain"


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (nested(33), "deeper than 32 levels"),
        ([1] * 10_000, "more than 10000 values"),
        ({"a": "x" * 2**18}, "at most 262144 are read"),
        (["\ud800"], "cannot be written as JSON"),
    ],
)
def test_bounds(value: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as refused:
        json_text(value, "state")
    assert refused.value.param == "state"


def test_what_is_within_the_bounds() -> None:
    assert json_text(nested(32), "state") == "[" * 32 + "1" + "]" * 32
    assert len(json_text([1] * 9_999, "state")) == 2 * 9_999 + 1
    assert json_text("as it is", "state") == "as it is"
