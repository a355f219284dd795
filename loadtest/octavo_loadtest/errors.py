"""Errors before and around a measurement. Errors inside one are data: see `record.Record.error`."""

from __future__ import annotations

from typing import Any


class LoadTestError(Exception):
    """The load cannot be run as asked; the message says what to change."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; `points` holds the setting that was being measured, if anything came of it."""

    def __init__(self, points: list[dict[str, Any]]) -> None:
        self.points = points
