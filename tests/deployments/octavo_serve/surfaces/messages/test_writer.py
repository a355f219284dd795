"""What a writer makes of pieces that no scripted model says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_serve.api.surface import to_json
from octavo_serve.surfaces.messages.writer import arguments


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": [1, 2', {"a": [1, 2]}),
        ('{"a": "cut o', {"a": "cut o"}),
        ('{"a": 1, "b', {"a": 1}),
        ("{", {}),
        ("nothing", {}),
    ],
)
def test_arguments_as_far_as_they_are_there(text: str, found: Any) -> None:
    assert arguments(text) == found


@given(st.text(st.sampled_from('{}[]",:19eE-.\\ul ntrue'), max_size=30))
def test_whatever_they_are_they_can_be_sent(text: str) -> None:
    to_json(arguments(text))
