"""The engine's lines are Serve's: with their level, in one record however many lines a traceback has."""

from __future__ import annotations

import logging

import pytest

from octavo_serve.logs import SERVE, take_in_engine


def test_the_engines_lines_are_in_serves_log(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    monkeypatch.setattr(SERVE, "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("octavo"), "parent", logging.getLogger().root)
    take_in_engine()
    logging.getLogger("octavo.engine.engine").error("it raises", extra={"request_id": "a-0"})
    assert [(record.levelname, record.getMessage(), vars(record)["request_id"]) for record in records] == [
        ("ERROR", "it raises", "a-0")
    ]
