"""`octavo batch`: where a file's lines are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from octavo.errors import ConfigError, OctavoError
from octavo_serve.command.plain_text import clean

SAY_SECONDS = 10.0
"""Between two lines that say how far it is."""


class Progress:
    """Says how far it is, a line now and then.

    Args:
        console: None: it says nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._said = time.monotonic()

    def __call__(self, done: int, failed: int, total: int) -> None:
        now = time.monotonic()
        if self._console is not None and now - self._said >= SAY_SECONDS:
            self._said = now
            self.say(f"{done + failed} of {total} lines, {failed} of them with an error")

    def say(self, sentence: str) -> None:
        """Say anything."""
        if self._console is not None:
            self._console.print(clean(sentence), markup=False, soft_wrap=True)


def batch(file: Path, output: Path, words: Sequence[str], base_url: str | None, key: str | None) -> int:
    """Answer a file's lines into `output`, those with an error into a file beside it.

    Args:
        words: a model, and settings of the engine.
        base_url: of the server that is to answer.

    Returns:
        The exit code: 0, or 1 where it could not be done; what is done already is found again.
    """
    console = Console(stderr=True, highlight=False)
    progress = Progress(console)
    try:
        if not file.is_file():
            raise ConfigError(f"there is no file {str(file)!r}")
        if base_url is None:
            from octavo_serve.command.batch.offline import answered

            asyncio.run(answered(file, output, words, progress))
        elif words:
            raise ConfigError(f"a server's model has its settings: leave out {' '.join(words)}")
        else:
            from octavo_serve.command.batch.server import through

            through(base_url, key, file, output, progress)
    except (OctavoError, OSError) as error:
        console.print(clean(str(error)), style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def errors_of(output: Path) -> Path:
    """Where lines with an error are."""
    return output.with_name(f"{output.name}.errors")
