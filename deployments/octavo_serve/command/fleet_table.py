"""A server's models and shards as tables, from what /v1/models, /health and /metrics say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from octavo_serve.command.plain_text import clean

_SAMPLE = re.compile(r"^(\w[\w:]*)\{(.*)\} (\S+)", re.MULTILINE)
_LABEL = re.compile(r'\b(\w++)="((?:[^"\\]|\\.)*+)"')  # in a time that grows with the text, whatever that is
_COLOURS = {"ready": "green", "loading": "yellow", "ok": "green", "degraded": "yellow"}

Shard = tuple[str, str]
"""A model's name and its shard's."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a server said at one time.

    Attributes:
        at: seconds, of any clock.
        status: of the whole, in /health's words.
        cards: of /v1/models.
        shards: ready shards by model; empty where the server does not tell.
        samples: metric -> value, by shard. Colons in names are underscores.
    """

    at: float
    status: str
    cards: list[dict[str, Any]]
    shards: Mapping[str, int]
    samples: Mapping[Shard, Mapping[str, float]]


def seen(at: float, models: Any, health: Any, metrics: str) -> Sight:
    """The same from the bodies of the three answers; what has another form is left out."""
    cards = _mapping(models).get("data")
    shards = _mapping(_mapping(health).get("shards"))
    return Sight(
        at,
        clean(str(_mapping(health).get("status", "unknown"))),
        [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else [],
        {str(name): count for name, count in shards.items() if isinstance(count, int)},
        _by_shard(metrics),
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _by_shard(metrics: str) -> dict[Shard, dict[str, float]]:
    found: dict[Shard, dict[str, float]] = {}
    for name, inside, value in _SAMPLE.findall(metrics):
        labels = dict(_LABEL.findall(inside))
        if "engine" in labels and (number := _number(value)) is not None:
            shard = labels.get("model_name", ""), labels["engine"]
            found.setdefault(shard, {})[name.replace(":", "_")] = number
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def models_table(sight: Sight) -> Table:
    """What is served: models, then the names that stand for some of them."""
    table = _table("model", "state", "context", "shards", "does", "")
    for card in sight.cards:
        name, state = str(card.get("id", "")), str(card.get("status") or "")
        stands_for = ", ".join(map(str, _mapping(card.get("alias_of"))))
        note = f"alias of {stands_for}" if stands_for else str(card.get("reason") or "")
        length = card.get("max_model_len")
        table.add_row(
            _plain(name),
            _plain(state, _COLOURS.get(state, "red")),
            f"{length:,}" if isinstance(length, int) else "",
            "" if stands_for else str(sight.shards.get(name, "")),
            _plain(", ".join(map(str, tasks)) if isinstance(tasks := card.get("tasks"), list) else ""),
            _plain(note),
        )
    return table


def shards_table(now: Sight, before: Sight | None) -> Table:
    """Every shard and its load.

    Args:
        before: an earlier sight, for what is counted per second.
    """
    table = _table("model", "shard", "running", "waiting", "KV in use", "cache hits", "tokens/s", "work waiting")
    for name in range(2, 8):
        table.columns[name].justify = "right"
    for (model, shard), values in sorted(now.samples.items()):
        earlier = before.samples.get((model, shard), {}) if before else {}
        table.add_row(
            _plain(model), _plain(shard), *_cells(values, earlier, now.at - (before.at if before else now.at))
        )
    return table


def _cells(values: Mapping[str, float], earlier: Mapping[str, float], seconds: float) -> Iterator[str]:
    def shown(name: str, form: str) -> str:
        return form.format(values[name]) if name in values else ""

    yield shown("vllm_num_requests_running", "{:.0f}")
    yield shown("vllm_num_requests_waiting", "{:.0f}")
    yield shown("vllm_kv_cache_usage_perc", "{:.0%}")
    asked, hits = values.get("vllm_prefix_cache_queries_total"), values.get("vllm_prefix_cache_hits_total")
    yield f"{hits / asked:.0%}" if asked and hits is not None else ""
    made = "octavo_shard_generation_tokens_total"
    yield f"{max(0.0, values[made] - earlier[made]) / seconds:.0f}" if made in values and made in earlier else ""
    yield shown("octavo_backlog_seconds", "{:.1f} s")


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name)
    return table


def _plain(text: str, style: str = "") -> Text:
    return Text(clean(text).replace("\n", " "), style=style)
