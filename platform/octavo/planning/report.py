"""The plan in words and tables, for people; `as_json` for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from octavo.planning.machines import Machine
from octavo.planning.measured import Comparison
from octavo.planning.memory import Holding
from octavo.planning.plan import Fit, Wanted, longest
from octavo.planning.shape import Shape

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Planned:
    """One model in one precision, on several machines."""

    model: str
    shape: Shape
    wanted: Wanted
    machines: list[Machine]
    fits: list[Fit]
    whole: Holding  # on one rank of the largest machine


def show(planned: list[Planned], console: Console) -> None:
    """Everything about one model, or one line for each of several."""
    if len(planned) == 1:
        console.print(
            Group(_title(planned[0]), _memory_table(planned[0]), _rate_table(planned[0]), *_notes(planned[0]))
        )
    else:
        console.print(_overview(planned))
        console.print(
            "N x: the fewest devices that hold the weights and one sequence of the longest length; -: none up to 8."
        )


def show_comparison(comparison: Comparison, console: Console) -> None:
    """A measured run beside its prediction."""
    table = Table("measured run", "predicted", "measured", "measured / predicted", title_justify="left")
    for name, (predicted, size) in comparison.bytes.items():
        table.add_row(f"{name} bytes", f"{predicted:,.0f}", f"{size:,}", f"{size / predicted:.3f}")
    for speed in comparison.speeds:
        label = f"{speed.kind} tokens/s ({speed.steps} steps; predicted is the ceiling)"
        table.add_row(label, f"{speed.ceiling:,.1f}", f"{speed.measured:,.1f}", f"{speed.share:.3f}")
    console.print(table)
    if comparison.coefficients is None:
        console.print(
            "Cost model: not fitted, since fewer than 8 steps or steps too much alike determine no coefficients."
        )
    else:
        each = ", ".join(f"{value:.3g} s per {name}" for name, value in comparison.coefficients.items())
        console.print(f"Cost model fitted: {each}; mean error {comparison.mean_error:.1%} over the same steps.")
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
        "runs": shape.runs,
        "parameters": shape.parameters,
        "active_parameters": round(shape.active_parameters),
        "max_positions": shape.max_positions,
        "weight_bytes": round(one.whole.weight_bytes()),
        "kv_bytes_per_token": one.whole.kv_bytes_per_token(),
        "wanted": asdict(one.wanted),
        "machines": [
            {"memory_bytes": machine.memory, "bandwidth": machine.bandwidth, "rates": machine.rates,
             "source": machine.source} | asdict(fit)
            for machine, fit in zip(one.machines, one.fits, strict=True)
        ],
    }  # fmt: skip


def _title(one: Planned) -> str:
    shape, whole = one.shape, one.whole
    active = f", {shape.active_parameters / 1e9:.2f} B active" if shape.num_experts > 1 else ""
    limit = longest(shape, one.wanted)
    return (
        f"[bold]{one.model}[/bold]: {shape.family}, {_count(shape.parameters)} parameters{active}, "
        f"{shape.num_layers} layers, {shape.num_heads} heads on {shape.num_kv_heads} with keys and values\n"
        f"weights {_bytes(whole.weight_bytes())} ({_precision(whole)}), "
        f"KV {_bytes(whole.kv_bytes_per_token())} per token ({whole.kv_dtype}), "
        f"{_bytes(whole.kv_bytes_per_token() * limit)} for {limit:,} tokens"
    )


def _memory_table(one: Planned) -> Table:
    columns = [
        "machine",
        "devices",
        "weights",
        "of memory",
        "KV room",
        "tokens",
        "longest",
        "full length",
        "typical",
        "80/20",
    ]
    table = Table(title="What fits (bytes of one device)", title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index in (0, 9) else "right")
    for machine, fit in zip(one.machines, one.fits, strict=True):
        memory = fit.memory
        table.add_row(
            machine.name,
            f"{fit.ranks} x {_bytes(machine.memory)}"
            if fit.fits
            else f"[red]{fit.ranks} x {_bytes(machine.memory)}[/red]",
            _bytes(memory.weights),
            f"{memory.share:.0%}",
            _bytes(memory.kv_room),
            f"{memory.kv_tokens:,}",
            f"{memory.longest_context:,}",
            f"{memory.full_length:,}",
            f"{memory.typical:,}",
            _rule(fit),
            style=None if fit.fits else "dim",
        )
    return table


def _rate_table(one: Planned) -> Table:
    wanted = one.wanted
    title = (
        f"Ceilings (roofline; requests of {wanted.input_tokens} + {wanted.output_tokens} tokens), tokens/s of the group"
    )
    priced = any(fit.rates and fit.rates.dollars_per_million is not None for fit in one.fits)
    money = ["$ / M output", "output / $"] if priced else []
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(
        ["machine", "type", "prefill", "decode, 1", "batch", "decode, batch", "output", *money]
    ):
        table.add_column(name, justify="left" if index < 2 else "right")
    for fit in one.fits:
        if fit.rates is None:
            continue
        rates = fit.rates
        figures = [rates.prefill, rates.decode_alone, rates.batch, rates.decode_batch, rates.output]
        row = [f"{fit.ranks} x {fit.machine}", fit.dtype, *(_figure(value) for value in figures)]
        if priced:
            row += ["-" if rates.dollars_per_million is None else f"{rates.dollars_per_million:.3f}",
                    "-" if rates.tokens_per_dollar is None else _count(rates.tokens_per_dollar)]  # fmt: skip
        table.add_row(*row)
    return table


def _notes(one: Planned) -> list[RenderableType]:
    notes = [
        "full length, typical: how many sequences of the longest length, and how many typical requests, fit at once. "
        "Red: not even that is met on as many devices as were tried.",
        "Rates are for dense matrices; vendors' headlines are often for sparse ones, twice as high. They are ceilings: "
        "give --measured for the share that an engine reaches.",
    ]
    if not one.shape.runs:
        notes.append(f"Octavo does not run {one.shape.family} models yet: this is for planning only.")
    if any(one.shape.windows):
        notes.append(
            "Layers with a sliding window keep the whole context in Octavo's cache; the rates count the window."
        )
    notes += [_cpu_note(machine) for machine in one.machines if machine.is_cpu]
    return [f"[dim]{note}[/dim]" for note in notes]


def _cpu_note(machine: Machine) -> str:
    rates = " and ".join(f"{rate / 1e9:,.0f} in {kind}" for kind, rate in machine.rates.items())
    return f"cpu: {machine.bandwidth / 1e9:.0f} GB/s, GFLOP/s {rates}, {machine.source}."


def _overview(planned: list[Planned]) -> Table:
    table = Table("model", "parameters", "precision", "weights", "KV / token", "longest")
    for column in table.columns[3:]:
        column.justify = "right"
    for machine in planned[0].machines:
        table.add_column(machine.name, justify="right")
    for one in planned:
        whole = one.whole
        devices = [f"{fit.ranks} x" if fit.fits else "-" for fit in one.fits]
        facts = [
            _bytes(whole.weight_bytes()),
            _bytes(whole.kv_bytes_per_token()),
            f"{longest(one.shape, one.wanted):,}",
        ]
        table.add_row(one.model, _count(one.shape.parameters), _precision(whole), *facts, *devices)
    return table


def _precision(holding: Holding) -> str:
    return holding.quantization.name if holding.quantization else holding.weight_dtype


def _rule(fit: Fit) -> str:
    """The 80/20 rule's answer where it differs from ours."""
    if fit.rule == "agrees":
        return "agrees"
    return f"{fit.rule}: " + (f"{fit.rule_ranks} x" if fit.rule_ranks else "none")


def _bytes(size: float) -> str:
    for unit, name in ((2**40, "TiB"), (_GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
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
