"""Settings: every wrong key is named with the nearest valid one, at any depth."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo_serve.settings import load_settings

MODEL = {"name": "a", "source": "b"}

WRONG = [
    ({}, "setting 'models' is required"),
    ({"models": []}, "models list should have at least 1 item"),
    ({"model": [MODEL]}, "unknown setting 'model': did you mean 'models'?"),
    ({"models": [MODEL], "gatway": {}}, "unknown setting 'gatway': did you mean 'gateway'?"),
    ({"models": [{"name": "a"}]}, "setting 'models.0.source' is required"),
    ({"models": [{**MODEL, "replica": 2}]}, "unknown setting 'replica': did you mean 'replicas'? in models.0"),
    ({"models": [{**MODEL, "replicas": "2"}]}, "models.0.replicas must be a valid integer, got '2'"),
    ({"models": [{**MODEL, "replicas": {"max": 2, "mni": 1}}]}, "unknown setting 'mni': did you mean 'min'?"),
    ({"models": [{**MODEL, "replicas": {"min": 3, "max": 2}}]}, "min 3, initial 3 and max 2 must be in this order"),
    ({"models": [{**MODEL, "replicas": {"max": 2, "utilization": 2}}]}, "must be less than or equal to 1, got 2"),
    ({"models": [{**MODEL, "engine": {"block_sizes": 4}}]}, "did you mean 'block_size'? in models.0.engine"),
    ({"models": [{**MODEL, "engine": {"block_size": 0}}]}, "block_size must be a whole number of at least 1, got 0"),
    ({"models": [{**MODEL, "engine": {"target_itl": "soon"}}]}, "target_itl must be a valid number"),
    ({"models": [MODEL], "gateway": {"max_m": 4}}, "unknown setting 'max_m': did you mean 'max_n'? in gateway"),
    ({"models": [MODEL], "router": {"report_s": 0}}, "router.report_s must be greater than 0, got 0"),
    ({"models": [MODEL, MODEL]}, "two models are called 'a'"),
]


@pytest.mark.parametrize(("args", "sentence"), WRONG)
def test_what_is_wrong_is_named(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(args)
    assert sentence in str(caught.value)


def test_engine_settings_reach_the_engine() -> None:
    settings = load_settings({"models": [{**MODEL, "engine": {"block_size": 32, "target_itl": 0.05}}]})
    assert (settings.models[0].engine.block_size, settings.models[0].engine.target_itl) == (32, 0.05)
