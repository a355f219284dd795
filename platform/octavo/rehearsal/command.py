"""`octavo replay`. Importing this module loads next to nothing: the command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.rehearsal.replay import Replayed


def replay(
    path: Annotated[Path, typer.Argument(help="A recording, or a folder of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what came of it as JSON.")] = False,
) -> None:
    """Have the real scheduler decide a recording again; exits with 0 if it decides the same, byte for byte."""
    try:
        found = _replay_all(path)
    except OctavoError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(found, enc_hook=str).decode())
    else:
        _show(found)
    raise typer.Exit(any(each.difference is not None for each in found))


def _replay_all(path: Path) -> list[Replayed]:
    from octavo.recording import find_recordings
    from octavo.rehearsal.replay import replay_file

    if not (files := find_recordings(path)):
        raise ConfigError(f"there is no recording in {path}")
    return [replay_file(file) for file in files]


def _show(found: list[Replayed]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("recording", "frames", "of which", "seconds", "decided again", box=None)
    for each in found:
        verdict = f"the same: {each.digest}" if each.difference is None else "[red]not the same"
        counts = ", ".join(f"{count:,} {name}" for name, count in each.frames.most_common(3))
        name = f"{each.path.parent.name}/{each.path.name}"
        table.add_row(name, f"{each.frames.total():,}", counts, f"{each.seconds:,.1f}", verdict)
    console = Console()
    console.print(table)
    for each in found:
        if (first := each.difference) is not None:
            console.print(f"{each.path}: frame {first.number}, {first.frame}\n  recorded  {first.recorded}\n"
                          f"  replayed  {first.replayed}", markup=False)  # fmt: skip
