"""`octavo plan`. Importing this module loads neither torch nor rich: the command imports what it needs when it runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.planning.measured import Comparison
    from octavo.planning.plan import Wanted
    from octavo.planning.report import Planned, Sized


def _list_families(wanted: bool) -> None:
    if not wanted:
        return
    from octavo.models.families.supported import supported

    for one in supported():
        typer.echo(f"{one.title:34} {one.model_type:16} {one.gguf or ''}".rstrip())
    raise typer.Exit


def plan(
    models: Annotated[
        list[str], typer.Argument(help="A directory, a .gguf file, package:MODULE/FILE, a hub id, or a config.json.")
    ],
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantization: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, none, int8, fp8, int4, nf4, gguf (a file's own blocks), or a GGUF format such as Q4_K. Repeat "
            "to compare."
        ),
    ] = None,
    kv_dtype: Annotated[
        str, typer.Option(help="auto (the model's), float32, bfloat16, float16, fp8 or int8.")
    ] = "auto",
    tensor_parallel: Annotated[
        int | None, typer.Option(help="Devices per model; the fewest that fit otherwise.")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="A machine, such as l4 or h100, or cpu for this one. Repeat for more.")
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(help="Of one device for an hour: 2.5 for all machines, or l4=0.7. Repeat for more."),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest sequence; the model's own limit otherwise.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Sequences of that length that must fit at once.")] = 1,
    input_tokens: Annotated[int, typer.Option(help="Prompt of a typical request.")] = 512,
    output_tokens: Annotated[int, typer.Option(help="Answer of a typical request.")] = 128,
    max_num_seqs: Annotated[int, typer.Option(help="Most sequences in one step, as in the engine.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Most tokens in one step, as in the engine.")] = 1024,
    gpu_memory_utilization: Annotated[float, typer.Option(help="Share of memory for the engine.")] = 0.9,
    measured: Annotated[
        Path | None, typer.Option(help="A run to put beside the prediction: JSON, or the load tester's JSONL.")
    ] = None,
    from_recording: Annotated[
        Path | None, typer.Option(help="Say how many shards recorded requests need to keep to an SLO (octavo replay).")
    ] = None,
    slo_ttft: Annotated[float | None, typer.Option(help="Of these: seconds to a first token.")] = None,
    slo_itl: Annotated[float | None, typer.Option(help="Of these: seconds between tokens, on average.")] = None,
    slo_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the requests that must keep to both.")] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
    families: Annotated[
        bool,
        typer.Option(
            "--families",
            is_eager=True,
            callback=_list_families,
            help="List the families of decoders that run, by model_type and GGUF architecture, and do nothing else.",
        ),
    ] = False,
) -> None:
    """Say what MODELS need and what fits where: memory, devices, contexts, rates and money. Loads no weights."""
    from rich.console import Console

    from octavo.planning import report
    from octavo.planning.plan import Wanted

    try:
        wanted = [
            Wanted(
                dtype=dtype,
                quantization=name,
                kv_dtype=kv_dtype,
                tensor_parallel=tensor_parallel,
                max_model_len=max_model_len,
                concurrency=concurrency,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                gpu_memory_utilization=gpu_memory_utilization,
            )
            for name in quantization or ["auto"]
        ]
        planned = _plan_all(models, wanted, gpu or [], price or [])
        comparison = None if measured is None else _compare(planned, measured)
        sized = None if from_recording is None else _size(planned, from_recording, slo_ttft, slo_itl, slo_share)
    except OctavoError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        fleets = {} if sized is None else {"fleets": [asdict(each) for each in sized]}
        typer.echo(json.dumps(report.as_json(planned, comparison) | fleets))
        return
    console = Console()
    report.show(planned, console)
    if comparison is not None:
        report.show_comparison(comparison, console)
    if sized is not None:
        report.show_fleets(sized, console)


def _plan_all(models: list[str], wanted: list[Wanted], gpus: list[str], prices: list[str]) -> list[Planned]:
    from octavo.planning.machines import MACHINES, find_machine
    from octavo.planning.plan import hold
    from octavo.planning.plan import plan as fit
    from octavo.planning.reading import read_shape
    from octavo.planning.report import Planned

    machines = [find_machine(name) for name in gpus or [*MACHINES, "cpu"]]
    hourly = _prices(prices, [machine.name for machine in machines])
    largest = max(machines, key=lambda machine: machine.memory)
    planned = []
    for model in models:
        shape = read_shape(model)
        for wish in wanted:
            fits = [fit(shape, machine, wish, hourly.get(machine.name)) for machine in machines]
            planned.append(Planned(model, shape, wish, machines, fits, hold(shape, largest, wish, 1)))
    return planned


def _prices(given: list[str], machines: list[str]) -> dict[str, float]:
    """`["2.5"]` or `["l4=0.7", "h100=2.5"]` -> dollars per hour by machine."""
    prices: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if name and name.lower() not in machines:
            raise ConfigError(f"--price names {name!r}, which is not among the machines {', '.join(machines)}")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ConfigError(f"--price must be dollars per hour such as 2.5 or l4=0.7, got {text!r}")
        prices |= {name.lower(): value} if name else dict.fromkeys(machines, value)
    return prices


def _compare(planned: list[Planned], file: Path) -> Comparison:
    from octavo.planning.measured import compare, read_run
    from octavo.planning.plan import hold
    from octavo.planning.roofline import Roofline

    if len(planned) != 1 or len(planned[0].machines) != 1:
        raise ConfigError("--measured is one run: give one model, one --quantization and the --gpu it ran on")
    one = planned[0]
    holding = hold(one.shape, one.machines[0], one.wanted, one.fits[0].ranks)
    return compare(read_run(file), Roofline(holding, one.machines[0]), one.wanted.max_num_batched_tokens)


def _size(planned: list[Planned], recording: Path, ttft: float | None, itl: float | None, share: float) -> list[Sized]:
    from octavo.planning.plan import hold
    from octavo.planning.roofline import Roofline
    from octavo.rehearsal.sizing import as_recorded, on_machine
    from octavo.rehearsal.traffic import read_traffic
    from octavo.rehearsal.whatif import Slo

    if len(planned) != 1:
        raise ConfigError("--from-recording is of one model: give one, and one --quantization")
    if ttft is None and itl is None:
        raise ConfigError("--from-recording needs --slo-ttft or --slo-itl: without one a single shard is enough")
    one, traffic, slo = planned[0], read_traffic(recording), Slo(ttft, itl)
    found = [as_recorded(traffic, slo, share)]
    for machine, fit in zip(one.machines, one.fits, strict=True):
        if fit.fits:
            roofline = Roofline(hold(one.shape, machine, one.wanted, fit.ranks), machine)
            found.append(on_machine(traffic, fit, roofline, slo, share))
    return found
