"""The console script `octavo-loadtest`. Exit codes: 0, 1 an SLO that was asked for is missed, 2 it cannot be run."""

from __future__ import annotations

import inspect
import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from octavo_loadtest import keys, matrix, report, search, slo, store, workloads
from octavo_loadtest.campaign import INTERRUPTED, Campaign, Document, Judging, compare, summary_of
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.figures import missed, point
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.metrics import DEFINITIONS
from octavo_loadtest.server import find_model, prepare
from octavo_loadtest.tokens import counter

T = TypeVar("T")
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out = Console(stderr=True, highlight=False)  # stdout is for the result alone

HELP = {
    "workload": "A preset (see `workloads`) or a file: ShareGPT JSON, Mooncake JSONL, Azure CSV, JSONL.",
    "arrivals": "closed, batch, constant, poisson, gamma:cv=2, onoff, ramp, step, rates:0=1,30=4, replay. "
    "Default: the workload's own.",
    "rate": "Sessions a second, not requests: a session of a chat workload has several.",
    "concurrency": "Closed loop: sessions at once. With other arrivals: requests in flight at most; waiting counts.",
    "requests": "Stop after so many requests (default 100, or as many as --duration holds).",
    "duration": "Stop after so many seconds of arrivals.",
    "scale": "Factor of all lengths, for small models.",
    "max_tokens": "Longest prompt with history and answer.",
    "think": "Factor of think times between turns.",
    "time_scale": "Factor of a replayed trace's times.",
    "seed": "The same seed sends the same load at the same times.",
    "warmup": "Requests before the run, not counted.",
    "processes": "Processes that send.",
    "drain": "Seconds to wait for answers after the last arrival.",
}


@dataclass(frozen=True, slots=True)
class Common:
    """What `load`, `sweep` and `capacity` all take."""

    url: Annotated[str, typer.Argument(help="The server, such as http://127.0.0.1:8000.")]
    model: Annotated[str, typer.Option(help="Default: the first that /v1/models lists.")] = ""
    api: Annotated[str, typer.Option(help="chat, completions or embeddings.")] = "chat"
    send_key: Annotated[
        keys.Sending,
        typer.Option(
            help=f"Send the key in {keys.VARIABLE} as a bearer token; safely: over https or to this machine alone."
        ),
    ] = "never"
    body: Annotated[
        str, typer.Option(help='JSON that goes into every request; {"temperature": 0} where text is asked for.')
    ] = ""
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's tokenizer.json: counts tokens where the server does not.")
    ] = None
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 600.0
    new_connections: Annotated[bool, typer.Option("--new-connections", help="A connection for each request.")] = False
    slos: Annotated[
        list[str] | None, typer.Option("--slo", help="interactive, mlperf-llama3.1-8b, ..., or ttft=0.5,tpot=0.05 (s).")
    ] = None
    attainment: Annotated[float, typer.Option(help="Share of requests that must keep an SLO.")] = 0.99
    definitions: Annotated[str, typer.Option(help="octavo, vllm, guidellm, aiperf or mlperf.")] = "octavo"
    price: Annotated[float, typer.Option(help="Dollars an hour of the whole server.")] = 0.0
    repeats: Annotated[int, typer.Option(help="Runs of each load, with fresh seeds, for intervals.")] = 1
    folder: Annotated[Path | None, typer.Option("--out", help="Where the report goes.")] = None
    name: Annotated[str, typer.Option(help="Title of the report.")] = ""


def _takes_load(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command (common, load, own options) the options of both, so that they are declared once."""
    default = Load()
    common = list(inspect.signature(Common, eval_str=True).parameters.values())
    loading = [_option(each.name, getattr(default, each.name)) for each in fields(Load)]
    own = list(inspect.signature(command, eval_str=True).parameters.values())[2:]

    def wrapper(**values: Any) -> None:
        given = Common(**{each.name: values.pop(each.name) for each in common})
        load = _or_exit(lambda: Load(**{each.name: values.pop(each.name) for each in loading}))
        command(given, load, **values)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*common, *loading, *own)]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper


def _option(name: str, default: Any) -> inspect.Parameter:
    annotation: Any = Annotated[type(default), typer.Option(help=HELP[name])]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _or_exit(action: Callable[[], T]) -> T:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what there is is kept then too
    try:
        return action()
    except KeyboardInterrupt:
        out.print("Interrupted before anything was measured")
        raise typer.Exit(130) from None
    except (LoadTestError, OSError) as error:  # a folder that cannot be written, a port that is taken
        out.print("[bold red]Cannot run:[/]", end=" ")
        out.print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- commands that send -------------------------------------------------------------------------------------------


@app.command()
@_takes_load
def load(common: Common, load: Load) -> None:
    """Send one load and report."""
    name = common.name or f"{load.workload} at {'concurrency ' if load.concurrency else ''}" + (
        str(load.concurrency) if load.concurrency else f"{load.rate:g} sessions/s"
    )
    _campaign(common, "load", lambda campaign: campaign.single(name, load))


@app.command()
@_takes_load
def sweep(
    common: Common,
    load: Load,
    over: Annotated[str, typer.Option(help="rate or concurrency.")] = "rate",
    start: Annotated[float, typer.Option("--from", help="First value.")] = 0.0,
    end: Annotated[float, typer.Option("--to", help="Last value.")] = 0.0,
    steps: Annotated[int, typer.Option(help="Number of rates; concurrencies double.")] = 6,
    stop_at: Annotated[str, typer.Option(help="Stop when medians are over these: ttft=2,tpot=0.1 (s).")] = "",
    gain: Annotated[
        float, typer.Option(help="Stop when throughput rises by less than this share; -1 never stops.")
    ] = 0.02,
) -> None:
    """Raise the rate, or the number of requests at once, until the server is full.

    Default: 16 to 256 at once, or rates from 0.5 to 16 a second.
    """
    bound = _or_exit(lambda: slo.parse(stop_at)) if stop_at else None

    def act(campaign: Campaign) -> Document:
        title = common.name or f"{load.workload} over {over}"
        if over == "concurrency":
            levels = search.doubling(int(start) or 16, int(end) or 256)
            return campaign.concurrencies(title, load, levels, bound, gain)
        if over == "rate":
            return campaign.rates(title, load, search.geometric(start or 0.5, end or 16, steps), bound, gain)
        raise LoadTestError(f"a sweep goes over rate or concurrency, not {over!r}")

    _campaign(common, "sweep", act, judge=False)  # a sweep goes beyond what a server can do


@app.command()
@_takes_load
def capacity(
    common: Common,
    load: Load,
    precision: Annotated[float, typer.Option(help="Relative width at which the search ends.")] = 0.1,
    most: Annotated[int, typer.Option(help="Probes at most.")] = 10,
) -> None:
    """Find the highest rate that keeps the first --slo: double from --rate, then bisect."""
    if not common.slos:
        _or_exit(lambda: _fail("capacity needs an --slo, such as --slo interactive"))
    title = common.name or f"Capacity for {load.workload}"
    _campaign(common, "capacity", lambda campaign: campaign.capacity(title, load, precision, most), judge=False)


def _fail(message: str) -> None:
    raise LoadTestError(message)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML: a server to start, loads, a matrix. See docs/loadtest.md.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Where the report goes.")] = None,
) -> None:
    """Start a server, load it through a matrix, tear it down, report."""
    where = folder or _new_folder("run")
    _finish(_or_exit(lambda: matrix.run(matrix.read(config), where, out)), where)


def _campaign(common: Common, kind: str, act: Callable[[Campaign], Document], judge: bool = True) -> None:
    folder = common.folder or _new_folder(kind)

    def everything() -> Document:
        judging = _judging(common)
        count = counter(common.tokenizer) if common.tokenizer else None
        target, calibration = prepare(_target(common))
        folder.mkdir(parents=True, exist_ok=True)  # before the run: one that cannot be kept is not worth its time
        return act(Campaign(target, calibration, judging, folder, out, count))

    _finish(_or_exit(everything), folder, judge)


def _judging(common: Common) -> Judging:
    if common.definitions not in DEFINITIONS:
        raise LoadTestError(f"no definitions called {common.definitions!r}; there are {', '.join(DEFINITIONS)}")
    slos = [slo.parse(text) for text in common.slos or ()]
    return Judging(slos, common.attainment, common.definitions, common.price, common.repeats)


def _target(common: Common) -> Target:
    default = "{}" if common.api == "embeddings" else '{"temperature": 0}'
    try:
        body = json.loads(common.body or default)
    except ValueError as error:
        raise LoadTestError(f"--body is no JSON: {error}") from None
    headers = keys.headers(common.url, common.send_key)
    model = common.model or find_model(common.url, headers)
    return Target(common.url, model, common.api, headers, body, not common.new_connections, common.timeout)


def _new_folder(kind: str) -> Path:
    return Path(f"loadtest-{kind}-{time.strftime('%Y%m%d-%H%M%S')}")


def _finish(found: Document, folder: Path, judge: bool = True) -> None:
    """Write the reports, print the result as the last line, and end with what the SLOs say."""
    document = _or_exit(lambda: report.write(folder, found))
    if len(document["points"]) == 1:
        _print_verdicts(document["points"][0]["runs"][-1])
    out.print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)
    interrupted = document.get("stopped") == INTERRUPTED
    if interrupted:
        out.print("Interrupted: the report holds what was measured until then.")
    print(report.last_line(document, folder), flush=True)
    if interrupted:
        raise typer.Exit(130)
    if judge and missed(document):
        out.print(f"SLO missed: {'; '.join(missed(document))}", style="bold red", markup=False)
        raise typer.Exit(1)


def _print_verdicts(run: dict[str, Any]) -> None:
    styles = {"good": "green", "warn": "yellow", "bad": "bold red"}
    for verdict in run["verdicts"]:
        out.print(f"[{styles[verdict['level']]}]{verdict['name']:>14}[/]", end="  ")
        out.print(verdict["text"], markup=False, soft_wrap=True)


# ---- commands that only read --------------------------------------------------------------------------------------


@app.command("compare")
def compare_(
    reports: Annotated[list[Path], typer.Argument(help="Folders of reports, or report.json files.")],
    names: Annotated[str, typer.Option(help="Their names, separated by commas.")] = "",
    folder: Annotated[Path | None, typer.Option("--out", help="Where the report goes.")] = None,
) -> None:
    """Lay several runs, sweeps or servers side by side."""

    def act() -> Document:
        documents = [store.read_document(path) for path in reports]
        titles = names.split(",") if names else [document["name"] for document in documents]
        if len(titles) != len(documents):
            raise LoadTestError(f"{len(documents)} reports need as many names, not {len(titles)}")
        return compare(list(zip(titles, documents, strict=True)))

    _finish(_or_exit(act), folder or _new_folder("compare"), judge=False)


@app.command("report")
def report_(
    runs: Annotated[list[Path], typer.Argument(help="What `load --out` wrote, or single runs in it.")],
    definitions: Annotated[str, typer.Option(help="octavo, vllm, guidellm, aiperf or mlperf.")] = "octavo",
    slos: Annotated[list[str] | None, typer.Option("--slo", help="As in `load`.")] = None,
    attainment: Annotated[float, typer.Option(help="Share of requests that must keep an SLO.")] = 0.99,
    price: Annotated[float, typer.Option(help="Dollars an hour.")] = 0.0,
    folder: Annotated[Path | None, typer.Option("--out", help="Where the report goes.")] = None,
) -> None:
    """Derive the figures of a finished run again, under other definitions or SLOs."""

    def act() -> Document:
        if definitions not in DEFINITIONS:
            raise LoadTestError(f"no definitions called {definitions!r}; there are {', '.join(DEFINITIONS)}")
        judging = Judging([slo.parse(text) for text in slos or ()], attainment, definitions, price)
        name = f"{runs[0].name} by {definitions}'s definitions"
        points = [point(title, 0.0, made) for title, made in _by_load(runs, judging).items()]
        return {"kind": "load", "name": name, "points": points}

    _finish(_or_exit(act), folder or _new_folder("report"))


def _by_load(given: list[Path], judging: Judging) -> dict[str, list[dict[str, Any]]]:
    """Summaries by load, repeats together: of one folder, or named singly, and alike but for the seed.

    Raises:
        LoadTestError: no run has a request; one that was interrupted before the first has a folder and none.
    """
    names: dict[tuple[Load, Path], str] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in given:
        for path in store.runs_of(folder):
            run = store.read(path)
            if not run.records:
                continue
            beside = Path() if path == folder else path.parent
            name = names.setdefault((replace(run.load, seed=0), beside), str(path.relative_to(folder.parent)))
            found.setdefault(name, []).append(store.plain(summary_of(run, judging)))
    if not found:
        raise LoadTestError(f"{', '.join(map(str, given))}: nothing was sent, so there is nothing to report")
    return found


@app.command("timeline")
def timeline_(
    runs: Annotated[list[Path], typer.Argument(help="What `load --out` wrote, or single runs in it.")],
    names: Annotated[str, typer.Option(help="Their names, separated by commas.")] = "",
    burst: Annotated[str, typer.Option(help="START,END (s) of the burst; default: what `step` arrivals say.")] = "",
    title: Annotated[str, typer.Option(help="Of the page.")] = "A burst",
    image: Annotated[bool, typer.Option("--png/--no-png", help="Also a PNG, with matplotlib.")] = True,
    folder: Annotated[Path, typer.Option("--out", help="Where timeline.html and timeline.png go.")] = Path(),
) -> None:
    """Offered load, replicas and first tokens over time, of one or several runs; and how a burst went."""
    from octavo_loadtest import timeline

    def act() -> list[timeline.Timeline]:
        found = [path for folder in runs for path in store.runs_of(folder)]
        titles = names.split(",") if names else [path.name for path in found]
        if len(titles) != len(found):
            raise LoadTestError(f"{len(found)} runs need as many names, not {len(titles)}")
        try:
            bounds = tuple(float(each) for each in burst.split(",")) if burst else None
            between = None if bounds is None else (bounds[0], bounds[1])
        except (ValueError, IndexError):
            raise LoadTestError(f"--burst is START,END in seconds, not {burst!r}") from None
        lines = [timeline.of_run(store.read(path), name, between) for path, name in zip(found, titles, strict=True)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "timeline.html").write_text(timeline.html(lines, title))
        if image:
            timeline.png(lines, title, folder / "timeline.png")
        return lines

    head, *rows = timeline.table(_or_exit(act))
    shown = Table(*map(escape, head))
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


@app.command("workloads")
def workloads_() -> None:
    """List the presets and where their numbers come from."""
    table = Table("name", "what", "source", show_lines=True)
    for name, preset in workloads.presets().items():
        table.add_row(name, preset["about"], preset["source"])
    Console().print(table)


@app.command()
def fake(
    port: Annotated[int, typer.Option(help="Port.")] = 8999,
    ttft: Annotated[float, typer.Option(help="Seconds to the first token.")] = 0.05,
    itl: Annotated[float, typer.Option(help="Seconds between tokens.")] = 0.01,
    slots: Annotated[int, typer.Option(help="Requests served at once; 0: no limit.")] = 0,
) -> None:
    """Run a server with known delays, to test clients and to find a client's own floor."""
    import asyncio

    from octavo_loadtest.fake_server import Behaviour, FakeServer

    async def serve() -> None:
        server = FakeServer(Behaviour(ttft=ttft, itl=itl, slots=slots))
        async with await server.start(port=port) as listening:
            out.print(f"{server.url}/v1")
            await listening.serve_forever()

    def until_interrupted() -> None:
        with suppress(KeyboardInterrupt):
            asyncio.run(serve())

    _or_exit(until_interrupted)
