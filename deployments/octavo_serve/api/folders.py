"""Paths that operators name while the server runs: below folders that the config names, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from octavo.errors import BadRequest


def inside(path: str, folders: Iterable[str], param: str, setting: str) -> str:
    """A path, links followed.

    Args:
        path: inside one of the folders, or relative to one.
        param: the field that named it.
        setting: the one that names the folders.

    Raises:
        BadRequest: it is in none of them.
    """
    try:
        for folder in (Path(each).expanduser().resolve() for each in folders):
            place = (folder / path).resolve()
            if place.is_relative_to(folder) and place != folder and place.exists():
                return str(place)
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, a loop of links
        pass
    raise BadRequest(f"{param} is in none of the model's {setting}", param)
