"""Writes reports: a self-contained HTML page, a Markdown table, and JSON."""

from __future__ import annotations

import math
import re
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from octavo_loadtest import documents, plots, store
from octavo_loadtest.figures import BY_KEY, Figure
from octavo_loadtest.svg import draw

Document = dict[str, Any]
TABLE = (
    "offered", "requests", "prompt_tokens", "output_tokens", "ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "tpot_p90",
    "gap_p99", "normalized_mean", "e2e_p50", "e2e_p99", "attainment", "goodput", "failed", "tokens_per_dollar",
)  # fmt: skip
_MARK = {"good": "✓", "warn": "!", "bad": "✗"}


def write(folder: Path, document: Document) -> Document:
    """Write report.html, report.md and report.json; returns the document as JSON holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    document = store.plain(document)
    for name, text in (
        ("json", store.dumps(document, indent=1)), ("md", markdown(document)), ("html", html(document)),
    ):  # fmt: skip
        # half a surrogate pair, which a server's JSON may hold, has no encoding
        (folder / f"report.{name}").write_text(text, encoding="utf-8", errors="replace")
    return document


def last_line(document: Document, folder: Path) -> str:
    """The result as one line of JSON, for scripts."""
    points = [
        {"name": point["name"], **_judged([point])}
        | {key: value[0] for key, value in point["figures"].items() if value[0] is not None}
        for point in document["points"]
    ]
    extra = {key: document[key] for key in ("stopped", "capacity", "saturation") if key in document}
    head = {"kind": document["kind"], "name": document["name"], "report": str(folder / "report.html")}
    return store.dumps({**head, **_judged(document["points"]), **extra, "points": points})


def _judged(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether all SLOs were met, in the words of the verdicts; nothing where none was asked for."""
    slos = [slo for point in points for run in point["runs"] for slo in run["slos"]]
    found = {slo["verdict"] for slo in slos}
    worst = next((verdict for verdict in ("failed", "unresolved", "passed") if verdict in found), None)
    return {"slo_met": all(slo["met"] for slo in slos), "slo_verdict": worst} if slos else {}


# ---- tables -------------------------------------------------------------------------------------------------------


def columns(points: list[dict[str, Any]]) -> list[Figure]:
    """The columns for which at least one point has a value."""
    return [BY_KEY[key] for key in TABLE if any(point["figures"][key][0] is not None for point in points)]


def cell(figure: Figure, value: list[Any]) -> str:
    """A cell such as 12.3 ±0.4; a dash if it is based on too few requests."""
    mean, half = value
    if mean is None:
        return "–"
    if mean == "inf" or math.isinf(float(mean)):
        return "∞"
    spread = f" ±{half:.{figure.digits}f}" if isinstance(half, float) and math.isfinite(half) else ""
    return f"{mean:,.{figure.digits}f}{spread}"


def markdown(document: Document) -> str:
    """The table, the verdicts and how to read them."""
    points = document["points"]
    shown = columns(points)
    titles = [_inline(document.get("over", "run")), *(f"{f.title} ({f.unit})" if f.unit else f.title for f in shown)]
    lines = [f"# {_inline(document['name'])}", "", *map(_inline, facts(document)), "", f"| {' | '.join(titles)} |"]
    lines.append("|" + "---|" * len(titles))
    for point in points:
        cells = [cell(figure, point["figures"][figure.key]) for figure in shown]
        lines.append(f"| {' | '.join([_inline(point['name']), *cells])} |")
    for point in points:
        lines += ["", f"**{_inline(point['name'])}**", ""]
        lines += [
            f"- {_MARK[v['level']]} {_inline(v['name'])}: {_inline(v['text'])}" for v in point["runs"][-1]["verdicts"]
        ]
        if rows := documents.table(point["runs"][-1]):
            head, *rest = [f"| {' | '.join(row)} |" for row in rows]
            lines += ["", head, "|" + "---|" * len(rows[0]), *rest]
    return "\n".join(lines) + "\n"


def _inline(text: str) -> str:
    """Somebody's text as text of one line: neither a row, nor a cell, nor markup."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", " ".join(text.split()))


def facts(document: Document) -> list[str]:
    """Sentences about the whole document."""
    runs = [point["runs"][0] for point in document["points"]]
    run = runs[0]
    loads = [f"{each['load']['workload']}, {each['arrivals']}, lengths x{each['load']['scale']:g}" for each in runs]
    targets = [f"{each['target']['model']} at {each['target']['url']}" for each in runs]
    found = [
        f"{'; '.join(dict.fromkeys(targets))}. {'; '.join(dict.fromkeys(loads))}. {run['started']}.",
        f"Definitions: {run['definitions']['about']} ({run['definitions']['name']}).",
    ]
    if document.get("stopped"):
        found.append(f"Stopped: {document['stopped']}.")
    if saturation := document.get("saturation"):
        found.append(_saturation(saturation))
    if capacity := document.get("capacity"):
        found.append(_capacity(capacity))
    return found


def _saturation(found: dict[str, Any]) -> str:
    kept, knee = found["last_rate_kept"], found["knee_requests_per_s"]
    ((what, peak),) = [(key.split("_")[1:-2], value) for key, value in found.items() if key.startswith("peak_")]
    sentence = "No throughput is known" if peak is None else f"Peak {peak:.1f} {' '.join(what)}/s"
    sentence += f"; the last rate kept up with was {kept:g}/s" if kept is not None else "; no rate was kept up with"
    return sentence + (f"; the curve bends at {knee:.2f} requests/s." if knee is not None else ".")


def _capacity(found: dict[str, Any]) -> str:
    low, high = found["low"], found["high"]
    span = f"{'below any rate tried' if low is None else f'{low:.3g} requests/s'}"
    missed = "no rate missed it" if high is None else f"{high:.3g}/s missed it"
    unsure = (
        f"; unresolved at {', '.join(f'{rate:.3g}' for rate in found['unresolved'])}" if found["unresolved"] else ""
    )
    return f"Capacity under {found['slo']}: {span}; {missed}{unsure}."


# ---- HTML ---------------------------------------------------------------------------------------------------------


def html(document: Document) -> str:
    """The HTML page."""
    series = document.get("series") or [document]
    points = document["points"]
    several = any(len(each["points"]) > 1 for each in series)
    charts = plots.of_points([_series(each) for each in series]) if several else []
    named = [(point["name"] if len(points) > 1 else "", point["runs"][-1]) for point in points]
    single = plots.of_runs(_spread(named, 6))
    body = [
        f"<h1>{escape(document['name'])}</h1>",
        *(f'<p class="fact">{escape(fact)}</p>' for fact in facts(document)),
        _tiles(points[0]) if len(points) == 1 else "",
        _table(document),
        _section("Curves", [draw(chart) for chart in charts]),
        _section("Distributions" if several else "The run", [draw(chart) for chart in single]),
        *(_by_length(point) for point in points),
        *(_verdicts(point, len(points) == 1) for point in points),
        _details(document),
    ]
    return page(document["name"], "\n".join(filter(None, body)))


def page(title: str, body: str) -> str:
    """A page that needs nothing else; `title` is text and `body` is HTML."""
    head, _, tail = resources.files("octavo_loadtest").joinpath("page.html").read_text().partition("BODY")
    return head.replace("TITLE", escape(title)) + body + tail


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many of the items, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _series(document: Document) -> plots.Series:
    return {"name": document["name"], "points": document["points"], "over": document.get("over", "run")}


def _tiles(point: dict[str, Any]) -> str:
    wanted = ("requests", "output_tokens", "ttft_p50", "tpot_p50", "e2e_p50", "e2e_p99", "failed")
    keys = [key for key in wanted if point["figures"][key][0] is not None]
    tiles = "".join(
        f'<div class="tile"><b>{cell(BY_KEY[key], point["figures"][key])}</b>'
        f"<span>{BY_KEY[key].title} {f'({BY_KEY[key].unit})' if BY_KEY[key].unit else ''}</span></div>"
        for key in keys
    )
    return f'<div class="tiles">{tiles}</div>'


def _table(document: Document) -> str:
    points = document["points"]
    shown = columns(points)
    head = "".join(f"<th>{escape(f.title)}<small>{escape(f.unit)}</small></th>" for f in shown)
    rows = []
    for point in points:
        levels = {verdict["level"] for run in point["runs"] for verdict in run["verdicts"]}
        level = next(each for each in ("bad", "warn", "good") if each in levels)
        cells = "".join(f"<td>{cell(f, point['figures'][f.key])}</td>" for f in shown)
        rows.append(f'<tr><th><i class="{level}">{_MARK[level]}</i> {escape(point["name"])}</th>{cells}</tr>')
    over = escape(document.get("over", "run"))
    return f'<div class="wide"><table><tr><th>{over}</th>{head}</tr>{"".join(rows)}</table></div>'


def _section(title: str, figures: list[str]) -> str:
    drawn = "".join(figures)
    return f'<h2>{title}</h2><div class="figures">{drawn}</div>' if drawn else ""


def _by_length(point: dict[str, Any]) -> str:
    rows = documents.table(point["runs"][-1])
    if not rows:
        return ""
    head, *rest = ["".join(f"<td>{escape(each)}</td>" for each in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in rest)
    title = f"By length of the text {escape(point['name'])}"
    return f'<h2>{title}</h2><div class="wide"><table><tr>{head.replace("td>", "th>")}</tr>{body}</table></div>'


def _verdicts(point: dict[str, Any], opened: bool) -> str:
    verdicts = point["runs"][-1]["verdicts"]
    items = "".join(
        f'<li><i class="{v["level"]}">{_MARK[v["level"]]}</i><b>{escape(v["name"])}</b> {escape(v["text"])}</li>'
        for v in verdicts
    )
    tag = "<details open>" if opened else "<details>"
    return f"{tag}<summary>Can it be believed? {escape(point['name'])}</summary><ul>{items}</ul></details>"


def _details(document: Document) -> str:
    load = document["points"][0]["runs"][0]["load"]
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in load.items())
    return f'<details><summary>The load</summary><table class="plain">{rows}</table></details>'
