"""The cluster's nodes, for callers that must not block."""

from __future__ import annotations

import threading

import ray

from octavo_serve.config.placement import Resources
from octavo_serve.ray_private import grows_by_itself

PERIOD = 5.0
"""Seconds between two queries."""


class Nodes:
    """The resources of each node of the cluster, queried in a thread."""

    def __init__(self) -> None:
        self._known: list[Resources] | None = None
        self._asked = float("-inf")

    def latest(self, now: float) -> list[Resources] | None:
        """The nodes found last. None before the first answer, and on a cluster that adds nodes on demand."""
        if now - self._asked > PERIOD:
            self._asked = now
            threading.Thread(target=self._look, daemon=True).start()
        return self._known

    def _look(self) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        self._known = None if grows_by_itself() else nodes
