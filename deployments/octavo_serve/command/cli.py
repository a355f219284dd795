"""The console script `octavo`. Commands import what they need when they run: `octavo --help` loads no Ray, no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo import __version__
from octavo.errors import ConfigError
from octavo.evaluation.command import evaluate
from octavo.planning.command import plan
from octavo.rehearsal.command import replay
from octavo_serve.command.plain_text import clean

Url = Annotated[str, typer.Argument(metavar="[URL]", help="The server; http://127.0.0.1:8000 by default.")]
Key = Annotated[str | None, typer.Option(help="Its key. Default: $OCTAVO_API_KEY, or $OPENAI_API_KEY with a URL.")]

_EXTRA = "ray", "starlette", "pydantic", "msgspec", "prometheus_client", "python_multipart"
"""Packages of the extra `serve`, without which plan, evaluate and chat work."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"octavo {__version__}")
        raise typer.Exit


def _list_settings(wanted: bool) -> None:
    if wanted:
        from octavo_serve.command.settings_table import show

        show()
        raise typer.Exit


@app.callback()
def _octavo(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say it.")] = False,
) -> None:
    """Open language models, served on Ray with a paged-KV engine of their own."""


@app.command(context_settings={"ignore_unknown_options": True})
def serve(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|MODEL] [--SETTING VALUE]...",
            help="A Serve config file, or a model: a hub id, a directory, a .gguf file or package:MODULE/FILE; the "
            "quickstart's if it is left out. With a model, every setting of a config is a flag: see --settings.",
        ),
    ] = None,
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
    log_format: Annotated[
        Literal["text", "json"] | None,
        typer.Option(help="Of these lines and Serve's logs, instead of the config's logging_config."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", "--dry-run", help="Check and print the config, ready to save, and end.")
    ] = False,
    settings: Annotated[
        bool, typer.Option("--settings", callback=_list_settings, is_eager=True, help="List every setting, and end.")
    ] = False,
) -> None:
    """Serve a model, or the models of CONFIG, until Ctrl-C, with progress and a meaningful exit code.

    A CONFIG is what `serve run CONFIG` takes. For a MODEL the config that it stands for is printed, ready to save.
    """
    from octavo_serve.command.from_model import asked_for
    from octavo_serve.command.serve_command import Options, run

    known = [name for option in context.command.params for name in option.opts if name.startswith("--")]
    try:
        config, document = asked_for(words or [], known, host, port)
    except ConfigError as error:
        typer.echo(f"Error: {clean(str(error))}", err=True)
        raise typer.Exit(2) from error
    options = Options(config, port, host, timeout, grace, address, fast, dashboard, verbose, document, log_format)
    raise typer.Exit(run(options, only_print=print_config))


@app.command(context_settings={"ignore_unknown_options": True})
def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|URL] [--SETTING VALUE]...",
            help="A model to load in this process, with the engine's settings as flags, or an OpenAI-compatible "
            "server. Left out: the server on this machine's port 8000 if there is one, else the quickstart's model.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which of a server's models; its first by default.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A sampling parameter, as temperature=0. Repeat for more."),
    ] = None,
    api_key: Key = None,
) -> None:
    """Talk with a model in the terminal, or answer the one question that comes through a pipe."""
    from octavo_serve.command.chat.command import chat as run

    raise typer.Exit(run(words or [], api_key, model, system, set_ or []))


@app.command(context_settings={"ignore_unknown_options": True})
def batch(
    output: Annotated[Path, typer.Option("--output", "-o", help="For the answers; errors go to OUTPUT.errors.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A line of OpenAI's batch format each.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [--SETTING VALUE]...",
            help="A model to load in this process, with the engine's settings as flags; the quickstart's if it is "
            "left out.",
        ),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="A server with batches that is to answer instead.")] = None,
    api_key: Key = None,
) -> None:
    """Answer the lines of FILE, in this process or by a server; begun again, it goes on where it was."""
    from octavo_serve.command.batch.command import batch as run

    raise typer.Exit(run(file, output, words or [], base_url, api_key))


@app.command()
def models(url: Url = "", api_key: Key = None) -> None:
    """List what a server serves."""
    from octavo_serve.command.looking import models as run

    raise typer.Exit(run(url, api_key))


@app.command()
def status(
    url: Url = "",
    api_key: Key = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show a server's models and shards with their load."""
    from octavo_serve.command.looking import status as run

    raise typer.Exit(run(url, api_key, watch, every))


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="Of one of the last answers: chatcmpl-...")],
    url: Url = "",
    api_key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the server says as JSON.")] = False,
) -> None:
    """Say why a request took so long, and why its prompt was found in the cache or not."""
    from octavo_serve.command.explaining import explain as run

    raise typer.Exit(run(request_id, url, api_key, as_json))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False) -> None:
    """Say what this machine can do and what is missing, each with a remedy; exits with 0 if the quickstart can work."""
    from octavo_serve.command.doctor import run

    raise typer.Exit(run(as_json))


app.command()(plan)
app.command()(replay)
app.command()(evaluate)


def main() -> None:
    try:
        app()
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in _EXTRA:
            raise
        sys.exit(f"{package} is not installed: pip install 'octavo[serve]'")


if __name__ == "__main__":
    main()
