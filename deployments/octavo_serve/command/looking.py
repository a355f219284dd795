"""`octavo models` and `octavo status`: what a server serves, and how its fleet does."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from octavo_serve.command.fleet_table import Sight, models_table, seen, shards_table
from octavo_serve.command.plain_text import clean
from octavo_serve.command.remote import Remote, RemoteError

_BETWEEN = 0.5
"""Seconds between the two looks that rates need."""
_WIDE = 200
"""Columns where no terminal says how many."""


def models(url: str, key: str | None) -> int:
    """Print what is served.

    Returns:
        The exit code: 1 where nothing can be asked.
    """
    return told(url, key, lambda remote, console: console.print(models_table(_look(remote))))


def status(url: str, key: str | None, watch: bool, every: float) -> int:
    """Print models and shards with their load, once or until Ctrl-C.

    Args:
        every: seconds between two looks.

    Returns:
        The exit code: 1 where nothing can be asked, or no model answers.
    """
    if watch:
        return told(url, key, lambda remote, console: _watch(remote, console, every))
    return told(url, key, _once)


def told(url: str, key: str | None, what: Callable[[Remote, Console], int | None]) -> int:
    """Have a server tell something; returns the exit code: 1 where nothing can be asked."""
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=_WIDE)
    try:
        remote = Remote(url, key)
        try:
            return what(remote, console) or 0
        finally:
            remote.close()
    except RemoteError as error:
        Console(stderr=True).print(clean(str(error)), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 0


def _look(remote: Remote, metrics: bool = False) -> Sight:
    models, health = remote.json("/v1/models"), remote.json("/health", failing=True)
    return seen(time.monotonic(), models, health, remote.text("/metrics") if metrics else "")


def _once(remote: Remote, console: Console) -> int:
    before = _look(remote, metrics=True)
    time.sleep(_BETWEEN)
    now = _look(remote, metrics=True)
    console.print(_fleet(remote, now, before))
    return 0 if now.status in ("ok", "degraded") else 1


def _watch(remote: Remote, console: Console, every: float) -> None:
    """A server that goes away is looked for until it is back."""
    before: Sight | None = None
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            try:
                now = _look(remote, metrics=True)
                live.update(_fleet(remote, now, before), refresh=True)
                before = now
            except RemoteError as error:
                live.update(Text(clean(str(error)), style="red"), refresh=True)
            time.sleep(every)


def _fleet(remote: Remote, now: Sight, before: Sight | None) -> RenderableType:
    title = Text(f"{remote.url}  {now.status}  {time.strftime('%H:%M:%S')}", style="bold")
    return Group(title, Text(""), models_table(now), Text(""), shards_table(now, before))
