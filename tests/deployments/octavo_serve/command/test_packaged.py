"""The quickstart's config, wherever the package lies."""

from __future__ import annotations

from pathlib import Path

from octavo_serve.command.packaged import quickstart, quickstart_model

ROOT = Path(__file__).parents[4]


def test_in_a_checkout_it_is_that_of_configs() -> None:
    assert quickstart().resolve() == ROOT / "configs" / "quickstart.yaml"
    assert quickstart_model()["name"] == "smollm2-135m"
