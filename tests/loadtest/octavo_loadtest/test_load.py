from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.cli import HELP
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.load import Load, from_dict, to_dict

FACTORS = ["rate", "scale", "time_scale"]
NUMBERS = ["concurrency", "requests", "duration", "max_tokens", "think", "warmup", "drain", "seed"]


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_factors_are_above_0(name: str, value: float) -> None:
    with pytest.raises(LoadTestError, match=f"{name} must be above 0 and finite, not {value}"):
        Load(**{name: value})  # type: ignore[arg-type]
    assert getattr(Load(**{name: 1e-9}), name) == 1e-9  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_not_negative(name: str) -> None:
    """Nor anything that no comparison holds for: a duration of NaN seconds had no end and said so nowhere."""
    for value in (-1, math.nan, math.inf):
        with pytest.raises(LoadTestError, match=f"{name} must be a number from 0 on, not {value}"):
            Load(**{name: value})  # type: ignore[arg-type]
    assert getattr(Load(**{name: 0}), name) == 0  # type: ignore[arg-type]


def test_a_context_has_room_for_a_prompt_and_an_answer() -> None:
    with pytest.raises(LoadTestError, match="2 or more, or 0"):
        Load(max_tokens=1)
    assert Load(max_tokens=2).max_tokens == 2


def test_somebody_sends() -> None:
    with pytest.raises(LoadTestError, match="one process"):
        Load(processes=0)


def test_a_load_of_a_file() -> None:
    load = from_dict({"rate": "2", "requests": 5.0, "workload": "balanced"})
    assert (load.rate, load.requests) == (2.0, 5)
    assert from_dict(to_dict(load)) == load
    with pytest.raises(LoadTestError, match=r"no colour, speed; it has workload, arrivals"):
        from_dict({"speed": 1, "colour": 2})
    with pytest.raises(LoadTestError, match="rate"):
        from_dict({"rate": "fast"})


def test_the_limit() -> None:
    assert (Load().limit, Load(requests=7).limit) == (100, 7)
    assert Load(duration=1).limit > 1000


def test_every_option_is_explained() -> None:
    assert set(HELP) == {field.name for field in fields(Load)}


WORDS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=1)
)


@given(st.dictionaries(st.sampled_from([*FACTORS, *NUMBERS, "processes", "workload", "arrivals"]), WORDS))
def test_whatever_a_file_says_is_a_load_or_one_sentence(values: dict[str, Any]) -> None:
    try:
        load = from_dict(values)
    except LoadTestError:
        return
    assert from_dict(to_dict(load)) == load
    assert all(0 < getattr(load, name) < math.inf for name in FACTORS)
    assert all(0 <= getattr(load, name) < math.inf for name in NUMBERS)
    assert load.processes >= 1
    assert load.limit >= 1
