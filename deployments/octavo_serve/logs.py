"""Serve's log, to which gateways and shards write."""

from __future__ import annotations

import logging

SERVE = logging.getLogger("ray.serve")


def take_in_engine() -> None:
    """Have the engine's lines in Serve's log with their levels, and as JSON where it is JSON.

    Serve would find them on stderr, and log each line of a traceback by itself.
    """
    logging.getLogger("octavo").parent = SERVE
