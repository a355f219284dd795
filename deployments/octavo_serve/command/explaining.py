"""`octavo explain`: where a request's time went, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from octavo_serve.command.looking import told
from octavo_serve.command.plain_text import clean
from octavo_serve.command.remote import Remote

_BAR = 40
"""Columns of a request's whole time."""


def explain(request_id: str, url: str, key: str | None, as_json: bool) -> int:
    """Print what a server says of a request.

    Returns:
        The exit code: 1 where it says nothing.
    """

    def show(remote: Remote, console: Console) -> None:
        found = remote.json(f"/v1/requests/{quote(request_id, safe='')}/explain")
        if as_json:
            console.print_json(json.dumps(found))
            return
        for part in _parts(found):
            console.print(part, soft_wrap=isinstance(part, Text))

    return told(url, key, show)


def _parts(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield Text(clean(str(found["sentence"])), style="bold")
    for prompt in found["prompts"]:
        yield _spans(prompt["spans"], max(found["seconds"], 1e-9))
        tokens = {name: count for name, count in prompt["tokens"].items() if count}
        yield Text("tokens: " + ", ".join(f"{count} {name}" for name, count in tokens.items()))
        if prompt["prefix"] is not None:
            yield from _prefix(prompt["prefix"])
        for decision in prompt["routing"]:
            yield _routing(decision)


def _spans(spans: list[Mapping[str, Any]], whole: float) -> Table:
    table = Table("at", "seconds", "where", "what", "for", "tokens", "", box=None)
    for span in spans:
        begin, end = round(_BAR * span["at"] / whole), round(_BAR * (span["at"] + span["seconds"]) / whole)
        bar = " " * min(begin, _BAR - 1) + "█" * max(1, end - begin)
        table.add_row(f"{span['at']:.3f}", f"{span['seconds']:.3f}", clean(span["where"]), span["what"], span["cause"],
                      str(span["tokens"] or ""), bar)  # fmt: skip
    return table


def _prefix(prefix: Mapping[str, Any]) -> Iterator[Text]:
    found = f"{prefix['cached_tokens']} of {prefix['possible_tokens']} tokens, {prefix['predicted_tokens']} predicted"
    yield Text(clean(f"cache: {found}. {prefix['sentence']}"))
    near = prefix["nearest"]
    if near is not None:
        where = "" if near["message"] is None else f", message {near['message']}"
        when = f"{near['id']}, {near['seconds_before']:.1f} s before"
        yield Text(clean(f"nearest: {when}, {near['common_tokens']} tokens in common{where}"))
        for name in ("before", "then", "now"):
            if near[name] is not None:
                yield Text(clean(f"  {name:>6}: {near[name]!r}"))


def _routing(decision: Mapping[str, Any]) -> Table:
    table = Table("shard", "cached", "wait", "queue", "adapter", "own", "others", "total", box=None)
    table.title, table.title_justify = f"routed to {clean(decision['shard'])} ({decision['reason']})", "left"
    for shard in decision["candidates"]:
        numbers = (shard[name] for name in ("wait", "queue", "adapter", "own", "others", "total"))
        table.add_row(clean(shard["shard"]), str(shard["cached"]), *(f"{number:.4f}" for number in numbers))
    return table
