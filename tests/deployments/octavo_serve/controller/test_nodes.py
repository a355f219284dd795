from __future__ import annotations

import time

import pytest

from octavo_serve.controller.nodes import Nodes


def test_the_nodes_of_a_cluster_that_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = {"Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr("ray.nodes", lambda: [alive, alive | {"Alive": False}])
    grows = "octavo_serve.controller.nodes.grows_by_itself"
    monkeypatch.setattr(grows, lambda: False)
    nodes, end = Nodes(), time.monotonic() + 30
    while (found := nodes.latest(100.0)) is None:
        assert time.monotonic() < end
    assert found == [{"CPU": 2.0}]
    monkeypatch.setattr(grows, lambda: True)
    while nodes.latest(106.0) is not None:
        assert time.monotonic() < end
