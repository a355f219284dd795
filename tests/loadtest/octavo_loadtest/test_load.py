from __future__ import annotations

from dataclasses import fields

import pytest

from octavo_loadtest.cli import HELP
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.load import Load, from_dict, to_dict


@pytest.mark.parametrize("name", ["rate", "scale", "time_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_factors_are_above_0(name: str, value: float) -> None:
    with pytest.raises(LoadTestError, match=f"{name} must be above 0"):
        Load(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["concurrency", "requests", "duration", "max_tokens", "think", "warmup", "drain"])
def test_numbers_are_not_negative(name: str) -> None:
    with pytest.raises(LoadTestError, match=f"{name} must not be negative"):
        Load(**{name: -1})  # type: ignore[arg-type]
    assert getattr(Load(**{name: 0}), name) == 0  # type: ignore[arg-type]


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
