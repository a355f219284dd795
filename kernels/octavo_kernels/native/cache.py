"""The cache folder, for files that are made once and loaded at every start: compiled libraries, packed weights,
assembled models.

Its files are executed or trusted, so only its user and root may be able to write there. The folder and all its parents
must belong to one of them and be writable by nobody else. The exception are parents with the sticky bit such as /tmp,
where nobody can rename other users' files; below these the user gets a subfolder. An unsafe folder is not read. If the
folder is unsafe, or cannot be written when something must be written, a folder in the temporary folder replaces it.
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
    """$OCTAVO_CACHE, or octavo/ in the user's cache folder. If everybody can write there, the user's subfolder of it;
    if it is not safe, a temporary folder, after one warning. It may not be writable."""
    return _safe(os.environ.get("OCTAVO_CACHE"), os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


def with_cache(make: Callable[[Path], T]) -> T:
    """Call `make` with the cache folder; with a temporary one, after one warning, if that cannot be written.

    Raises:
        what `make` raises; `OSError` if neither folder can be written.
    """
    folder = cache_folder()
    try:
        return make(folder)
    except OSError as error:
        if folder == temporary_folder():
            raise
        _warn(f"the cache folder {folder} cannot be used ({error}): {temporary_folder()} takes its place")
        return make(temporary_folder())


def own_folder(folder: Path, setting: str) -> Path:
    """A folder, made where there is none, in which only its user and root can write.

    Args:
        setting: that names another folder.

    Raises:
        OSError: others can, or it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check(folder, setting)
    return folder


def own_file(file: Path) -> bool:
    """Whether only its user and root can have written this file."""
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
        with suppress(OSError):  # it may exist without being writable
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_for_all(folder):
            folder = folder / f"octavo-{os.getuid()}"
            folder.mkdir(exist_ok=True, mode=0o700)
        _check(folder)
    except (OSError, RuntimeError) as error:  # Path.home() raises RuntimeError if there is no home
        _warn(f"no cache folder ({error}): {temporary_folder()} takes its place")
        return temporary_folder()
    return folder


def _users_own() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo"


def _is_for_all(folder: Path) -> bool:
    """Whether everybody may create files in it but not rename those of others, as in /tmp."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISVTX) and bool(mode & 0o022)


def _check(folder: Path, setting: str = "OCTAVO_CACHE") -> None:
    """Raise unless only this user and root can change a folder's content."""
    real = folder.resolve(strict=True)
    if not real.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    for place in (real, *real.parents):
        status = place.stat()
        sticky = place != real and bool(status.st_mode & stat.S_ISVTX) and status.st_uid in (os.getuid(), _ROOT)
        if not sticky and not _is_ours(status):
            raise PermissionError(f"others may write in {place}: set {setting} to a folder of your own")


def _is_ours(status: os.stat_result) -> bool:
    if status.st_uid not in (os.getuid(), _ROOT) or status.st_mode & 0o002:
        return False
    return not status.st_mode & 0o020 or _is_private(status.st_gid)


def _is_private(group: int) -> bool:
    """Whether a group is root's, or the private group that many systems create for each user."""
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
    """A temporary folder for this user, or for this process if somebody else has taken the user's name."""
    folder = Path(tempfile.gettempdir()) / f"octavo-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(exist_ok=True, mode=0o700)
        if not folder.is_symlink():
            _check(folder)
            return folder
    return Path(tempfile.mkdtemp(prefix="octavo-"))


@functools.cache
def _warn(message: str) -> None:
    """Log a warning once per process."""
    logger.warning(message)
