"""Prints the plan as text and tables; `as_json` returns it for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from octavo.planning.machines import Machine
from octavo.planning.measured import Comparison
from octavo.planning.memory import Holding
from octavo.planning.plan import Fit, Wanted, groups_of, kv_bytes, longest
from octavo.planning.shape import Shape

_OVERVIEW_NOTE = (
    "N x: the fewest devices that hold the weights and as many sequences of the longest length as asked for (1); "
    "-: not even the most that were tried."
)


@dataclass(frozen=True, slots=True)
class Planned:
    """One model in one precision, on several machines."""

    model: str
    shape: Shape
    wanted: Wanted
    machines: list[Machine]
    fits: list[Fit]
    whole: Holding  # on one rank of the largest machine


@dataclass(frozen=True, slots=True)
class Sized:
    """How many shards recorded requests need.

    Attributes:
        devices: of a shard.
        shards: None where not even the most that were tried are enough.
        good: share of the requests that keep to the SLO then.
        ttft, itl: 90th percentiles, in seconds.
    """

    machine: str
    devices: int
    shards: int | None
    good: float
    ttft: float
    itl: float


def show(planned: list[Planned], console: Console) -> None:
    """Print everything about one model, or one line for each of several."""
    if len(planned) > 1:
        _print(_overview(planned), console)
        console.print(_OVERVIEW_NOTE)
        return
    (one,) = planned
    if (here := _here(one)) is not None:
        console.print(here, highlight=False, soft_wrap=True)
    console.print(_title(one))
    _print(_memory_table(one), console)
    _print(_rate_table(one), console)
    for note in _notes(one):
        console.print(note, style="dim", highlight=False)


def show_fleets(fleets: list[Sized], console: Console) -> None:
    """Print how many shards of which machine recorded requests need."""
    table = _table("Shards for the recording", "machine", "shards", "good", "TTFT p90", "ITL p90", left=1)
    for one in fleets:
        shards = "-" if one.shards is None else f"{one.shards}"
        figures = f"{one.good:.1%}", f"{one.ttft * 1e3:,.0f} ms", f"{one.itl * 1e3:,.1f} ms"
        table.add_row(f"{one.devices} x {one.machine}", shards, *figures)
    _print(table, console)


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print a measured run and its prediction."""
    table = _table("Measured", "what", "steps", "predicted", "measured", "measured / predicted", left=1)
    for name, (predicted, size) in comparison.bytes.items():
        table.add_row(f"{name}, bytes", "", f"{predicted:,.0f}", f"{size:,}", f"{size / predicted:.3f}")
    for speed in comparison.speeds:
        figures = f"{speed.steps:,}", f"{speed.ceiling:,.1f}", f"{speed.measured:,.1f}", f"{speed.share:.3f}"
        table.add_row(f"{speed.kind}, tokens/s (ceiling)", *figures)
    _print(table, console)
    if comparison.coefficients is None:
        console.print("Cost model not fitted: fewer than 8 steps, or too much alike to tell its coefficients apart.")
    else:
        each = ", ".join(f"{value:.3g} s per {name}" for name, value in comparison.coefficients.items())
        console.print(f"Cost model: {each}; median error {comparison.median_error:.0%} over the same steps.")
    if comparison.left_out:
        console.print(f"{comparison.left_out} requests left out: they overlapped others or took several prefill steps.")


def as_json(planned: list[Planned], comparison: Comparison | None) -> dict[str, Any]:
    """All figures: bytes, tokens per second, dollars."""
    result: dict[str, Any] = {"plans": [_plan_json(one) for one in planned]}
    if comparison is not None:
        speeds = [asdict(speed) | {"share": speed.share} for speed in comparison.speeds]
        result["measured"] = asdict(comparison) | {"speeds": speeds}
    return result


def _plan_json(one: Planned) -> dict[str, Any]:
    shape = one.shape
    return {
        "model": one.model,
        "family": shape.family,
        "parameters": shape.parameters,
        "active_parameters": round(shape.active_parameters),
        "max_positions": shape.max_positions,
        "weight_bytes": round(one.whole.weight_bytes()),
        "kv_bytes_per_token": one.whole.kv_bytes_per_token(),
        "state_bytes": one.whole.state_bytes(),
        "wanted": asdict(one.wanted),
        "machines": [
            {"memory_bytes": machine.memory, "bandwidth": machine.bandwidth, "rates": machine.rates,
             "source": machine.source} | asdict(fit)
            for machine, fit in zip(one.machines, one.fits, strict=True)
        ],
    }  # fmt: skip


def _here(one: Planned) -> str | None:
    """What the whole plan says of this machine; None if it is not among those that were asked about."""
    found = next((fit for machine, fit in zip(one.machines, one.fits, strict=True) if machine.is_cpu), None)
    if found is None:
        return None
    weights, tokens, rates = _bytes(found.memory.weights), found.memory.kv_tokens, found.rates
    if one.shape.encoder and (not found.fits or rates is None):
        return f"[bold]This machine's CPU: no[/], {weights} of weights do not fit. {_smallest(one)}"
    if not found.fits or rates is None:
        asked = f"{one.wanted.concurrency:,} x {longest(one.shape, one.wanted):,} are asked for"
        return f"[bold]This machine's CPU: no[/], {weights} of weights, {tokens:,} KV tokens; {asked}. {_smallest(one)}"
    if rates.decode_alone is None or rates.decode_batch is None:
        speed = f"{_figure(rates.texts)} texts of {one.wanted.input_tokens} tokens a second"
        return f"[bold]This machine's CPU: yes[/], {weights} of weights; at most {speed}."
    return (
        f"[bold]This machine's CPU: yes[/], {weights} of weights and {tokens:,} KV tokens; at most "
        f"{_figure(rates.decode_alone)} tokens/s for one stream, {_figure(rates.decode_batch)} for {rates.batch}."
    )


def _smallest(one: Planned) -> str:
    memory = {machine.name: machine.memory for machine in one.machines}
    fitting = [fit for fit in one.fits if fit.fits]
    if not fitting:
        return "No machine that was asked about holds it."
    best = min(fitting, key=lambda fit: fit.ranks * memory[fit.machine])
    return f"The smallest that holds it: {best.ranks} x {best.machine}."


def _title(one: Planned) -> str:
    shape, whole = one.shape, one.whole
    active = f", {shape.active_parameters / 1e9:.2f} B active" if shape.num_experts > 1 else ""
    limit = longest(shape, one.wanted)
    kv = (
        f"KV {_bytes(whole.kv_bytes_per_token())} per token ({whole.kv_dtype}), "
        f"{_bytes(kv_bytes(whole, one.wanted, limit))} for {limit:,} tokens"
    )
    if state := whole.state_bytes():
        kv += f", and {_bytes(state)} for the state of a sequence in {shape.recurrent_layers} recurrent layers"
    return (
        f"[bold]{escape(one.model)}[/bold]: {shape.family}, {_count(shape.parameters)} parameters{active}, "
        f"{shape.num_layers} layers, {shape.num_heads} heads on {shape.num_kv_heads} with keys and values\n"
        f"weights {_bytes(whole.weight_bytes())} ({_precision(whole)}), "
        + (f"no keys and values: an encoder, texts of up to {limit:,} tokens" if shape.encoder else kv)
    )


def _memory_table(one: Planned) -> Table:
    columns = ["weights", "share", "KV tokens", "longest", "full", "typical", "80/20"]
    table = _table("What fits (weights of one device)", "machine", *columns, left=1)
    for fit in one.fits:
        memory = fit.memory
        table.add_row(
            f"{fit.ranks} x {fit.machine}",
            _bytes(memory.weights),
            f"{memory.share:.0%}",
            f"{memory.kv_tokens:,}",
            f"{memory.longest_context:,}",
            f"{memory.full_length:,}",
            f"{memory.typical:,}",
            _rule(fit),
            style=None if fit.fits else "red",
        )
    return table


def _rate_table(one: Planned) -> Table:
    wanted = one.wanted
    if not one.shape.generates:
        return _text_table(one)
    priced = any(fit.rates and fit.rates.dollars_per_million is not None for fit in one.fits)
    money = ["$ / M", "out / $"] if priced else []
    title = f"Ceilings in tokens/s (requests of {wanted.input_tokens} + {wanted.output_tokens} tokens)"
    table = _table(title, "machine", "prefill", "decode 1", "batch", "decode", "output", *money, left=1)
    for fit in one.fits:
        if (rates := fit.rates) is None:
            continue
        figures = [rates.prefill, rates.decode_alone, rates.batch, rates.decode_batch, rates.output]
        row = [f"{fit.ranks} x {fit.machine}", *(_figure(value) for value in figures if value is not None)]
        if priced:
            row.append("-" if rates.dollars_per_million is None else f"{rates.dollars_per_million:.3f}")
            row.append("-" if rates.tokens_per_dollar is None else _count(rates.tokens_per_dollar))
        table.add_row(*row)
    return table


def _text_table(one: Planned) -> Table:
    """Of a model that generates nothing."""
    title = f"Ceilings for texts of {one.wanted.input_tokens} tokens"
    table = _table(title, "machine", "tokens/s", "texts/s", "in a step", "$ / M tokens", left=1)
    for fit in one.fits:
        if (rates := fit.rates) is not None:
            price = "-" if rates.dollars_per_million is None else f"{rates.dollars_per_million:.2g}"
            figures = [_figure(value) for value in (rates.prefill, rates.texts, rates.batch)]
            table.add_row(f"{fit.ranks} x {fit.machine}", *figures, price)
    return table


def _notes(one: Planned) -> list[str]:
    limit = longest(one.shape, one.wanted)
    where = "a step holds" if one.shape.encoder else "fit at once"
    notes = [
        f"full, typical: sequences of {limit:,} tokens and typical requests that {where}. 80/20: what the rule of "
        "thumb says, where it differs.",
        "Rates are ceilings, for dense matrices (headlines are often for sparse ones, twice as high): --measured shows "
        "the share that an engine reaches.",
    ]
    if misfits := [fit.machine for fit in one.fits if not fit.fits]:
        notes.append(f"Not all that was asked for fits on as many devices as were tried: {', '.join(misfits)}.")
    if others := [f"{fit.machine} in {fit.dtype}" for fit in one.fits if fit.dtype != one.whole.dtype]:
        notes.append(f"Computed in another type than {one.whole.dtype}: {', '.join(others)}.")
    if window := groups_of(one.shape, one.wanted).window:
        notes.append(f"Layers with a sliding window keep {window:,} tokens and a step's; the rates count the window.")
    return notes + [_cpu_note(machine) for machine in one.machines if machine.is_cpu]


def _cpu_note(machine: Machine) -> str:
    rates = " and ".join(f"{rate / 1e9:,.0f} in {kind}" for kind, rate in machine.rates.items())
    return f"cpu: {machine.bandwidth / 1e9:.0f} GB/s, GFLOP/s {rates}, {machine.source}."


def _overview(planned: list[Planned]) -> Table:
    machines = [machine.name for machine in planned[0].machines]
    table = _table("", "model", "parameters", "precision", "weights", "KV / token", "longest", *machines, left=3)
    for one in planned:
        whole = one.whole
        devices = [f"{fit.ranks} x" if fit.fits else "-" for fit in one.fits]
        facts = [
            _bytes(whole.weight_bytes()),
            _bytes(whole.kv_bytes_per_token()),
            f"{longest(one.shape, one.wanted):,}",
        ]
        table.add_row(escape(one.model), _count(one.shape.parameters), _precision(whole), *facts, *devices)
    return table


def _table(title: str, *columns: str, left: int) -> Table:
    """A table without lines between columns; columns after the first `left` hold numbers."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    return table


def _print(table: Table, console: Console) -> None:
    """Print a table at its full width: a truncated number is worse than a long line."""
    width, needed = console.width, Measurement.get(console, console.options.update(width=1000), table).maximum
    console.width = max(width, needed)
    console.print(table)
    console.width = width


def _precision(holding: Holding) -> str:
    return holding.quantization.name if holding.quantization else holding.weight_dtype


def _rule(fit: Fit) -> str:
    """The 80/20 rule's answer where it differs from ours."""
    devices = f"{fit.rule_ranks} x" if fit.rule_ranks else "none"
    return "agrees" if fit.rule == "agrees" else f"{fit.rule.removeprefix('too ')}: {devices}"


def _bytes(size: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"


def _count(number: float) -> str:
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return f"{number:.0f}"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
