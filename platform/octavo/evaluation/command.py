"""`octavo evaluate`. Importing this module loads no torch: the command imports what it needs when it runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.errors import OctavoError

if TYPE_CHECKING:
    from octavo.evaluation.evaluate import Evaluation


ITSELF = (
    "This compares the model in float32 with itself: nothing can differ. Worth comparing: --activations int16 or int8 "
    "(faster on a CPU), --quantization int8 or int4, or --reference and what MODEL was made from."
)


def evaluate(
    model: Annotated[str, typer.Argument(help="A directory, a .gguf file, package:MODULE/FILE or a hub id.")],
    text: Annotated[Path, typer.Option(help="A UTF-8 text file to measure on.")],
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    activations: Annotated[str, typer.Option(help="auto, float32, int16 or int8.")] = "auto",
    quantization: Annotated[str | None, typer.Option(help="As in the engine's settings.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="What to compare with, in exact float32; MODEL itself otherwise.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text that are used.")] = 4096,
    window: Annotated[int, typer.Option(help="Tokens that are read as one sequence.")] = 512,
    max_kl: Annotated[
        float | None, typer.Option(help="Most mean KL divergence, in nats; the exit code is 1 above it.")
    ] = None,
    layers: Annotated[bool, typer.Option(help="Show every layer's own error.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all this process may use otherwise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Compare MODEL, as it would be served, with the same or another model in float32: perplexity and KL divergence."""
    from octavo.config import EngineConfig
    from octavo.evaluation.evaluate import Settings, compares_with_itself, read_text
    from octavo.evaluation.evaluate import evaluate as run
    from octavo.source import resolve_source

    try:
        settings = Settings(tokens=tokens, window=window, max_kl=max_kl)
        config = EngineConfig.from_settings(
            {
                "dtype": dtype,
                "activations": activations,
                "quantization": quantization,
                "device": device,
                "threads": threads,
            }
        )
        sources = resolve_source(model), resolve_source(reference or model)
        if compares_with_itself(sources[0], config, sources[1]):
            typer.echo(ITSELF, err=True)
        found = run(sources[0], config, sources[1], read_text(text), settings, layers=layers, progress=not as_json)
    except OctavoError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(json.dumps(asdict(found)) if as_json else _report(found))
    raise typer.Exit(1 if found.passed is False else 0)


def _report(found: Evaluation) -> str:
    from octavo.evaluation.layers import worst

    d = found.divergence
    lines = [
        f"model       {found.model}, {found.weight_bytes / 1e6:.1f} MB of weights",
        f"reference   {found.reference.partition(';')[0]}, {found.reference_weight_bytes / 1e6:.1f} MB of weights",
        f"text        {d.tokens:,} positions in windows of {d.window}",
        f"perplexity  {d.perplexity:.4f}, reference {d.reference_perplexity:.4f}",
        f"KL          mean {d.mean_kl:.3g}, 99th percentile {d.p99_kl:.3g}, most {d.max_kl:.3g} nats",
        f"top token   equal at {d.top1:.2%} of positions",
        f"greedy      first differs {_places(found.greedy)}",
    ]
    if found.layers:
        lines += ["relative error of each part, given the reference's input:"]
        lines += [f"  {name:<15}{error:.3g}" for name, error in found.layers.items()]
        lines += [worst(found.layers)]
    return "\n".join([*lines, found.verdict])


def _places(greedy: list[int | None]) -> str:
    from octavo.evaluation.evaluate import NEW_TOKENS

    return "after " + ", ".join(f"more than {NEW_TOKENS}" if n is None else str(n) for n in greedy) + " tokens"
