"""Files of the repository that a wheel carries inside the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def quickstart() -> Path:
    """The quickstart's config: in a wheel, which takes it from `configs`, inside the package; else in the checkout."""
    inside = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
    return inside if inside.exists() else Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def quickstart_model() -> dict[str, Any]:
    """The settings of the quickstart's model."""
    (model,) = yaml.safe_load(quickstart().read_text())["applications"][0]["args"]["models"]
    return dict(model)
