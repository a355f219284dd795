"""`Database`: one sqlite file, which several gateways of a node may use: each operation is a transaction of its own.

All of its work runs in one thread per gateway. Nothing is opened before it is needed.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, TypeVar

from octavo.errors import OctavoError, Overloaded

P = ParamSpec("P")
T = TypeVar("T")

MAX_WAITING = 1024
"""Operations that may run or wait; each takes well below a millisecond."""
BUSY_SECONDS = 5.0
"""How long an operation waits for that of another gateway."""


class Database:
    """A file at a time.

    Args:
        what: it holds, for errors.
        tables: makes those that are missing.
        synchronous: NORMAL survives the end of a process, FULL that of the machine.
    """

    def __init__(self, what: str, tables: str, synchronous: Literal["NORMAL", "FULL"] = "NORMAL") -> None:
        self._what = what
        self._set_up = f"PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; {tables}"
        self._pool = ThreadPoolExecutor(1, "octavo-database")
        self._waiting = 0
        self._opened: tuple[Path, sqlite3.Connection] | None = None

    async def run(
        self, path: Path, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`work(connection, ...)` as a transaction in the file at `path`, whether its caller waits for it or not.

        Raises:
            OctavoError: the file cannot be used; Overloaded: too many operations wait; what `work` does.
        """
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} requests wait for {self._what} already", retry_after=1.0)
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, self._perform, path, _bound(work, *args, **kwargs)
        )
        future.add_done_callback(self._ended)
        return await asyncio.shield(future)

    def _ended(self, _: object) -> None:
        self._waiting -= 1

    def _perform(self, path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._connection(path)
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                return work(connection)
        except sqlite3.Error as error:
            raise OctavoError(f"the file of {self._what} cannot be used: {error}") from error
        except OSError as error:  # its text names the path, which clients are not told
            raise OctavoError(f"the file of {self._what} cannot be used: {error.strerror}") from error

    def _connection(self, path: Path) -> sqlite3.Connection:
        """The open file; another one after its path has changed."""
        if self._opened is None or self._opened[0] != path:
            if self._opened is not None:
                self._opened[1].close()
            self._opened = path, _open(path, self._set_up)
        return self._opened[1]


def _bound(
    work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> Callable[[sqlite3.Connection], T]:
    return lambda connection: work(connection, *args, **kwargs)


def _open(path: Path, set_up: str) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)  # sqlite gives the files beside it the same
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.executescript(set_up)
    return connection
