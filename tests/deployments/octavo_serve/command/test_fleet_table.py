"""Models and shards as tables."""

from __future__ import annotations

import asyncio
import inspect
import io
import re
from typing import Any

from rich.console import Console, RenderableType

from octavo_serve.api.exposition import render
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.command import fleet_table
from octavo_serve.command.fleet_table import Sight, models_table, seen, shards_table

CARDS = {
    "data": [
        {"id": "big", "status": "ready", "max_model_len": 8192, "tasks": ["generate", "embed"]},
        {"id": "bad\x1b[31m", "status": "failed", "reason": "no such\nfile"},
        {"id": "small", "alias_of": {"big": 1.0}, "max_model_len": 8192},
    ]
}
HEALTH = {"status": "degraded", "shards": {"big": 2}}


def metrics(tokens: int) -> str:
    values = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:prefix_cache_queries_total": 1000,
        "vllm:prefix_cache_hits_total": 600,
        "octavo_shard_generation_tokens_total": tokens,
        "octavo_backlog_seconds": 1.25,
    }
    return "\n".join(f'{name}{{engine="a",model_name="big"}} {float(value)}' for name, value in values.items())


def shown(table: RenderableType) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=150).print(table)
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def sight(at: float, models: Any = CARDS, health: Any = HEALTH, text: str = "") -> Sight:
    return seen(at, models, health, text)


def test_models_aliases_and_reasons() -> None:
    assert shown(models_table(sight(0)))[1:] == [
        "big ready 8,192 2 generate, embed",
        "bad[31m failed no such file",
        "small 8,192 alias of big",
    ]


def test_shards_with_their_rates() -> None:
    now, before = sight(12.0, text=metrics(150)), sight(10.0, text=metrics(50))
    assert shown(shards_table(now, before))[1:] == ["big a 3 2 25% 60% 50 1.2 s"]
    assert shown(shards_table(now, None))[1:] == ["big a 3 2 25% 60% 1.2 s"]  # no rate from one look


def test_what_has_another_form_is_left_out() -> None:
    for strange in (None, [], {"data": [1]}, {"data": None}, "text"):
        assert len(shown(models_table(sight(0, strange, strange, "a{b=\n\x00")))) == 1
    assert sight(0, text='a{engine="x"} much\nb{engine="y"} 2').samples == {("", "y"): {"b": 2.0}}
    assert sight(0, text="a{" + "b" * 10**6 + "} 1").samples == {}  # at once; the square of it would be an hour


def test_the_metrics_it_shows_are_those_that_gateways_have() -> None:
    there = asyncio.run(render(Telemetry(), {})).decode().replace(":", "_")
    names = re.findall(r'"((?:vllm|octavo)_\w+)"', inspect.getsource(fleet_table))
    assert len(names) == 7
    assert [name for name in names if f"# HELP {name} " not in there] == []
