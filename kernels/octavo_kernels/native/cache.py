"""The folder for what is made once and loaded at every start: compiled libraries, packed weights, assembled models.

What lies there is run, or believed, so nobody but its user and root may be able to put something there: the folder and
all above it belong to one of them, and no one else may write in them, but for a folder like /tmp, in which nobody can
rename what is another's. In such a one the user has a subfolder. A folder that does not pass is not read, and one that
cannot be written is given up where something must be written: then a folder in the temporary one takes its place.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ROOT = 0


def cache_folder() -> Path:
    """$OCTAVO_CACHE, else octavo/ in the user's cache folder; the user's own subfolder where it is for all, and a
    temporary folder, after one warning, where it is not safe. It may be one that cannot be written."""
    return _safe(os.environ.get("OCTAVO_CACHE"), os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


def with_cache(make: Callable[[Path], T]) -> T:
    """What `make` makes of the cache folder; of a temporary one, after one warning, where that cannot be written.

    Raises:
        what `make` raises; `OSError` where neither can be written.
    """
    folder = cache_folder()
    try:
        return make(folder)
    except OSError as error:
        if folder == temporary_folder():
            raise
        _warn(f"the cache folder {folder} cannot be used ({error}): {temporary_folder()} takes its place")
        return make(temporary_folder())


def own_file(file: Path) -> bool:
    """Whether this is a file that nobody but its user and root can have written."""
    with suppress(OSError):
        status = file.lstat()
        return stat.S_ISREG(status.st_mode) and _is_ours(status)
    return False


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the kernel drops if this process dies."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@functools.cache
def _safe(chosen: str | None, _xdg: str | None, _home: str | None) -> Path:
    try:
        folder = Path(chosen).absolute() if chosen else _users_own()
        with suppress(OSError):  # it may be there and not be ours to write
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_for_all(folder):
            folder = folder / f"octavo-{os.getuid()}"
            folder.mkdir(exist_ok=True, mode=0o700)
        _check(folder)
    except (OSError, RuntimeError) as error:  # Path.home() raises the latter where there is no home
        _warn(f"no cache folder ({error}): {temporary_folder()} takes its place")
        return temporary_folder()
    return folder


def _users_own() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo"


def _is_for_all(folder: Path) -> bool:
    """Whether everybody may write in it and nobody may rename what is another's, as in /tmp."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISVTX) and bool(mode & 0o022)


def _check(folder: Path) -> None:
    """Raise unless only this user and root decide what is in a folder."""
    real = folder.resolve(strict=True)
    if not real.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    for place in (real, *real.parents):
        status = place.stat()
        sticky = place != real and bool(status.st_mode & stat.S_ISVTX) and status.st_uid in (os.getuid(), _ROOT)
        if not sticky and not _is_ours(status):
            raise PermissionError(f"others may write in {place}: set OCTAVO_CACHE to a folder of your own")


def _is_ours(status: os.stat_result) -> bool:
    if status.st_uid not in (os.getuid(), _ROOT) or status.st_mode & 0o002:
        return False
    return not status.st_mode & 0o020 or _is_private(status.st_gid)


def _is_private(group: int) -> bool:
    """Whether a group is root's or one that has only this user, as many systems give each user one."""
    import grp
    import pwd

    if group == _ROOT:
        return True
    try:
        user, found = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user and set(found.gr_mem) <= {user}


@functools.cache
def temporary_folder() -> Path:
    """One for this user; where another has taken its name, one for this process."""
    folder = Path(tempfile.gettempdir()) / f"octavo-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(exist_ok=True, mode=0o700)
        if not folder.is_symlink():
            _check(folder)
            return folder
    return Path(tempfile.mkdtemp(prefix="octavo-"))


@functools.cache
def _warn(message: str) -> None:
    """Once in a process."""
    logger.warning(message)
