"""What takes long of making a grammar, left to threads that have more time.

Work that runs `briefly` ends with `TakesLong` where it comes to more than a usual request has. What it has found out by
then is kept, and the same work goes on from there in another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LOOKS = 32
"""New tools of a request whose schemas are looked at briefly, 1 ms each; 1,024 take 1 to 5 s."""

_here = threading.local()


class TakesLong(Exception):
    """Not here: this takes longer than a usual request's grammar does."""


def briefly(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do it in this thread, if it does not take long.

    Raises:
        TakesLong: it does.
    """
    _here.looks = LOOKS
    try:
        return work(*args, **kwargs)
    finally:
        del _here.looks


def is_brief() -> bool:
    """Whether this thread is to do nothing that takes long."""
    return hasattr(_here, "looks")


def look() -> None:
    """To be called before a schema is looked at.

    Raises:
        TakesLong: there have been too many.
    """
    if is_brief():
        if not _here.looks:
            raise TakesLong
        _here.looks -= 1
