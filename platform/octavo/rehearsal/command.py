"""`octavo replay`. Importing this module loads next to nothing: the command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.rehearsal.replay import Replayed
    from octavo.rehearsal.whatif import Measures


def replay(
    path: Annotated[Path, typer.Argument(help="A recording, or a folder of them.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="What if this setting of the engines, or with a range of "
            "shards of the autoscaler, was another? Repeat.",
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(metavar="N|MIN-MAX", help="What if there were so many, or the autoscaler had this range?"),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="What if routers went by this policy?")] = None,
    slo_ttft: Annotated[float | None, typer.Option(help="Seconds to a first token that count as good.")] = None,
    slo_itl: Annotated[float | None, typer.Option(help="Seconds between tokens that do, on average.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came of it as JSON.")] = False,
) -> None:
    """Have real schedulers and routers decide a recording again: exits with 0 if they decide the same, byte for byte.

    With --set, --shards, --policy or an SLO: say what would have become of its requests.
    """
    import msgspec

    asks = any(each is not None for each in (set_, shards, policy, slo_ttft, slo_itl))
    try:
        found = _what_if(path, set_ or [], shards, policy, slo_ttft, slo_itl) if asks else _replay_all(path)
    except OctavoError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(msgspec.json.encode(found, enc_hook=str).decode())
    elif isinstance(found, dict):
        _show_measures(found)
    else:
        _show(found)
    if isinstance(found, list):
        raise typer.Exit(any(each.difference is not None for each in found))


def _what_if(
    path: Path, given: list[str], shards: str | None, policy: str | None, ttft: float | None, itl: float | None
) -> dict[str, Measures]:
    """What was recorded, what simulation makes of the same, and what it makes of the changes."""
    from dataclasses import replace

    from octavo.rehearsal.scaled import START, TARGETS, ScaledRerun, scaling_of
    from octavo.rehearsal.traffic import read_traffic
    from octavo.rehearsal.whatif import Rerun, Slo, changed, measures
    from octavo.routing.policy import POLICIES
    from octavo.routing.router import RoutingConfig

    if policy is not None and policy not in POLICIES:
        raise ConfigError(f"--policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    settings, bounds = _settings(given), _bounds(shards)
    traffic, slo = read_traffic(path), Slo(ttft, itl)
    of_scaler = {name: settings.pop(name) for name in list(settings) if name in (START, *TARGETS)}
    if of_scaler and not isinstance(bounds, tuple):
        raise ConfigError(f"{next(iter(of_scaler))} is the autoscaler's: give it a range by --shards MIN-MAX")
    if any(machine.config.has_tier for machine in traffic.machines):
        typer.echo("Note: what came from a tier is computed in simulations, so first tokens come later.", err=True)
    routing = traffic.routing or RoutingConfig()
    other = replace(routing, policy=policy or routing.policy)
    same = Rerun(traffic, changed(traffic, {}), routing, None)
    found = {"recorded": measures(traffic.told, slo, traffic.shards_on_average())}
    found["simulated"] = measures(same.outcome(), slo, same.shards_on_average())
    if settings or shards is not None or policy is not None:
        config = changed(traffic, settings)
        if isinstance(bounds, tuple):
            run: Rerun = ScaledRerun(traffic, config, other, scaling_of(traffic, *bounds, of_scaler))
        else:
            run = Rerun(traffic, config, other, bounds)
        found["what if"] = measures(run.outcome(), slo, run.shards_on_average())
    return found


def _bounds(shards: str | None) -> int | tuple[int, int] | None:
    """The number of shards, or the least and the most of them; None if nothing is said."""
    if shards is None:
        return None
    found = [int(each) if each.isdecimal() and len(each) < 6 else -1 for each in shards.split("-")]
    if len(found) > 2 or min(found) < 0 or found[-1] < max(1, found[0]):
        raise ConfigError(f"--shards takes a number from 1 on, or a range such as 2-8, got {shards!r:.80}")
    return found[0] if len(found) == 1 else (found[0], found[1])


def _settings(given: list[str]) -> dict[str, Any]:
    import yaml

    settings = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, got {each!r}")
        try:
            settings[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {name}: {value!r:.80} is no YAML") from None
    return settings


def _show_measures(found: dict[str, Measures]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *found, box=None)
    for name in ("ttft", "itl"):
        for share in next(iter(found.values())).ttft:
            values = (getattr(each, name).get(share) for each in found.values())
            table.add_row(f"{name.upper()} p{share}", *("-" if s is None else f"{s * 1e3:,.1f} ms" for s in values))
    table.add_row("output tokens/s", *(f"{each.output_tokens:,.0f}" for each in found.values()))
    table.add_row("goodput, requests/s", *(f"{each.goodput:.2f} ({each.good:.1%})" for each in found.values()))
    table.add_row("shards, on average", *("-" if e.shards is None else f"{e.shards:.1f}" for e in found.values()))
    table.add_row("requests, without a token", *(f"{each.requests:,}, {each.unserved}" for each in found.values()))
    Console().print(table)


def _replay_all(path: Path) -> list[Replayed]:
    from octavo.recording import find_recordings
    from octavo.rehearsal.replay import replay_file

    if not (files := find_recordings(path)):
        raise ConfigError(f"there is no recording in {path}")
    return [replay_file(file) for file in files]


def _show(found: list[Replayed]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("recorded", "of", "frames", "decisions", "seconds", "decided again", box=None)
    for each in found:
        verdict = f"the same: {each.digest}" if each.difference is None else "[red]not the same"
        decisions = sum(each.frames[name] for name in ("Scheduled", "Routed", "Scaled"))
        counts = f"{each.frames.total():,}", f"{decisions:,}", f"{each.seconds:,.1f}"
        table.add_row(each.kind, each.path.parent.name, *counts, verdict)
    console = Console()
    console.print(table)
    for each in found:
        if (first := each.difference) is not None:
            console.print(f"{each.path}: frame {first.number}, {first.frame}\n  recorded  {first.recorded}\n"
                          f"  replayed  {first.replayed}", markup=False)  # fmt: skip
