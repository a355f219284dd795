"""Files of the repository that the package carries with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def quickstart() -> Path:
    """The quickstart's config. In a checkout it is a link to that of `configs`, which a wheel holds a copy of."""
    return Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def quickstart_model() -> dict[str, Any]:
    """The settings of the quickstart's model."""
    (model,) = yaml.safe_load(quickstart().read_text())["applications"][0]["args"]["models"]
    return dict(model)
