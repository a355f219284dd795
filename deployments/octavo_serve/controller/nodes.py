"""What the cluster has, for a caller that must not wait."""

from __future__ import annotations

import threading

import ray

from octavo_serve.config.placement import Resources
from octavo_serve.ray_private import grows_by_itself

PERIOD = 5.0
"""Seconds between two looks."""


class Nodes:
    """What each node of the cluster has, asked for in a thread."""

    def __init__(self) -> None:
        self._known: list[Resources] | None = None
        self._asked = float("-inf")

    def latest(self, now: float) -> list[Resources] | None:
        """What was found last; None until then, and on a cluster that grows by itself: there Ray brings nodes."""
        if now - self._asked > PERIOD:
            self._asked = now
            threading.Thread(target=self._look, daemon=True).start()
        return self._known

    def _look(self) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        self._known = None if grows_by_itself() else nodes
