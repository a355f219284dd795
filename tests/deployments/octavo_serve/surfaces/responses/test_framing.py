"""Events as bytes: each named by its type."""

from __future__ import annotations

from octavo_serve.surfaces.responses.framing import FRAMING


def test_an_event_is_named_by_its_type() -> None:
    assert FRAMING.frame({"type": "response.created"}, b"{}") == b"event: response.created\ndata: {}\n\n"
    assert FRAMING.frame({"error": {}}, b"{}") == b"event: error\ndata: {}\n\n"
    assert FRAMING.describe({"a": 1}, {"b": 1})["required"] == ["data"]
