"""The console script `octavo`. Commands import what they need when they run: `octavo --help` loads no Ray, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.evaluation.command import evaluate
from octavo.planning.command import plan

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _octavo() -> None:
    """Open language models, served on Ray with a paged-KV engine of their own."""


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="A Serve config file, such as configs/quickstart.yaml.")],
    port: Annotated[int | None, typer.Option(help="Listen here instead of the config's port.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Listen on this address, such as 0.0.0.0, instead of the config's or 127.0.0.1.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until the first answer before giving up.")] = 1800,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running requests have to end after SIGTERM.")] = 20,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster to join; a local one is started otherwise.")
    ] = None,
    fast: Annotated[
        bool, typer.Option(help="Serve's throughput settings and HAProxy, where the platform has them.")
    ] = True,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard too (ten processes, 0.9 GB).")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's log while it runs.")] = False,
) -> None:
    """Serve the models of CONFIG until Ctrl-C: like `serve run CONFIG`, with progress and a meaningful exit code."""
    from octavo_serve.command.serve_command import Options, run

    raise typer.Exit(run(Options(config, port, host, timeout, grace, address, fast, dashboard, verbose)))


app.command()(plan)
app.command()(evaluate)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
