"""What a request gets where it leaves something open."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.request import SamplingParams
from octavo_serve.api.model import Defaults

MAKERS = {"temperature": 0.6, "top_p": 0.9, "top_k": 20}


def filled(defaults: Defaults, room: int = 1000, **given: Any) -> SamplingParams:
    params = SamplingParams(**given)
    defaults.fill_in(params, given, room)
    return params


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0.6, 0.9, 20)),
        ({"temperature": 0.0}, (0.0, 0.9, 20)),
        ({"top_p": 1.0}, (0.6, 1.0, 20)),
        ({"top_k": 5, "temperature": 1.0}, (1.0, 0.9, 5)),
    ],
)
def test_what_a_request_says_wins(given: dict[str, Any], expected: tuple[float, float, int]) -> None:
    params = filled(Defaults(sampling=MAKERS), **given)
    assert (params.temperature, params.top_p, params.top_k) == expected


def test_top_p_of_0_stays_greedy() -> None:
    as_sent = SamplingParams(top_p=0)
    assert filled(Defaults(sampling=MAKERS), top_p=0).temperature == as_sent.temperature


@pytest.mark.parametrize(
    ("default", "room", "given", "expected"),
    [
        (None, 1000, {}, None),
        (40, 1000, {}, 40),
        (40, 7, {}, 7),  # the context ends before
        (40, 1000, {"max_tokens": 3}, 3),
        (40, 1000, {"min_tokens": 60}, 60),
    ],
)
def test_the_default_length_ends_with_the_context_and_holds_the_least_asked_for(
    default: int | None, room: int, given: dict[str, Any], expected: int | None
) -> None:
    given = {"max_tokens": None} | given
    assert filled(Defaults(max_tokens=default), room, **given).max_tokens == expected
