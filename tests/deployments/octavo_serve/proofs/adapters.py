"""Many adapters over a budget for a few, and one that is loaded again and again: nobody waits long, nothing is stale.

    python tests/deployments/octavo_serve/proofs/adapters.py configs/quickstart.yaml

The server gets `--adapters` adapters of rank `--rank` on every matrix, and `lora_bytes` for `--room` of them. Requests
come when they are due (Poisson, `--rate` a second), in turns for adapters that are loaded and for any, so that most of
the second kind have to be read first. The files are links to one: the machine's own cache holds them either way once
they were hashed, and what differs is the config beside them.

Then `--clients` ask the same of one name, each the next request after the last answer, while an operator loads other
contents under that name `--reloads` times. An answer is stale if it is not that of the contents which the name had when
it was sent, or got before it ended.

The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from running import RunningServer, metric, parser
from safetensors.numpy import save_file

from octavo import LLM
from octavo.models.adapters import find_adapter
from octavo.models.source_spec import read_spec
from octavo.models.spec import ModelSpec
from octavo.source import resolve_source

MATRICES = {
    "self_attn.q_proj": ("hidden_size", "q_size"), "self_attn.k_proj": ("hidden_size", "kv_size"),
    "self_attn.v_proj": ("hidden_size", "kv_size"), "self_attn.o_proj": ("q_size", "hidden_size"),
    "mlp.gate_proj": ("hidden_size", "intermediate_size"), "mlp.up_proj": ("hidden_size", "intermediate_size"),
    "mlp.down_proj": ("intermediate_size", "hidden_size"),
}  # fmt: skip
PROMPT = (
    "Once upon a time, in a land of many adapters, there lived a young clerk who counted them all, day by day. " * 3
)
WARM = 3
"""Requests for each loaded adapter before anything is measured."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--adapters", type=int, default=100)
    options.add_argument("--room", type=int, default=4, help="adapters that lora_bytes holds")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--rate", type=float, default=1.5, help="requests per second")
    options.add_argument("--requests", type=int, default=300, help="of each kind")
    options.add_argument("--rounds", type=int, default=3, help="turns in which they come")
    options.add_argument("--tokens", type=int, default=8, help="of an answer")
    options.add_argument("--clients", type=int, default=8, help="that ask while a name is loaded again")
    options.add_argument("--reloads", type=int, default=60)
    given = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="oct"))
    config = write(given.config, folder, given.adapters, given.room, given.rank)
    with RunningServer(config, given.port) as server:
        result = asyncio.run(prove(server, given))
    print(json.dumps(result))
    sys.exit(1 if result["complaints"] else 0)


# ── adapters and a config ──


def write(config: Path, folder: Path, count: int, room: int, rank: int) -> Path:
    """Adapters below `folder`, and the same config with them and with room for a few."""
    document = yaml.safe_load(config.read_text())
    (model, *_) = document["applications"][0]["args"]["models"]
    spec = read_spec(resolve_source(model["source"]))
    names = [f"a{number}" for number in range(count)]
    for number, name in enumerate(["x", "y", *names]):
        make(folder / name, spec, rank, number if number < 2 else None, folder / "x")
    model |= {"lora": {name: str(folder / name) for name in names}, "lora_folders": [str(folder)]}
    model["engine"] |= {"lora_bytes": int((room + 0.5) * size_of(folder / "x", model))}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def make(folder: Path, spec: ModelSpec, rank: int, seed: int | None, like: Path) -> None:
    """An adapter of random matrices, or one whose config alone differs from another's."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "note": folder.name}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = folder / "adapter_model.safetensors"
    if seed is None:
        os.link(like / weights.name, weights)
        return
    drawn, tensors = np.random.default_rng(seed), {}
    for layer in range(spec.num_layers):
        for name, (inner, outer) in MATRICES.items():
            stem, columns, rows = f"model.layers.{layer}.{name}", getattr(spec, inner), getattr(spec, outer)
            tensors[f"{stem}.lora_A.weight"] = (drawn.normal(size=(rank, columns)) / columns**0.5).astype(np.float16)
            tensors[f"{stem}.lora_B.weight"] = (drawn.normal(size=(rows, rank)) * 0.05).astype(np.float16)
    save_file(tensors, weights)


def size_of(folder: Path, model: dict[str, Any]) -> int:
    """Bytes of an adapter in a shard's memory."""
    llm = LLM(model["source"], progress=False, **model["engine"])
    size = llm.engine.executor.load_adapter(find_adapter("x", folder))
    llm.close()
    return size


# ── what is asked ──


async def prove(server: RunningServer, options: Any) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        names = [f"a{number}" for number in range(options.adapters)]
        kinds: dict[str, list[str]] = {"resident": names[: options.room], "any": names}
        drawn, took = random.Random(options.seed), {kind: list[float]() for kind in kinds}
        while any(card["status"] == "loading" for card in (await http.get("/v1/models")).json()["data"]):
            await asyncio.sleep(0.5)  # they are read one after the other
        for _ in range(options.rounds):
            for kind, some in kinds.items():
                for name in names[: options.room] * (WARM if kind == "resident" else 0):
                    await first_token(http, name, options.tokens)
                asked = [drawn.choice(some) for _ in range(options.requests // options.rounds)]
                took[kind] += await due(http, asked, options.rate, options.tokens, drawn)
        loaded = await metric(http, "octavo_adapters_loaded")
        alone = [await cold(http, name, options.tokens) for name in names[options.room : options.room + 20]]
        stale, answers, cached = await reload(http, options)
    seconds = {kind: quantiles(values) for kind, values in took.items()}
    result = {
        "first_token_ms": seconds, "times": round(seconds["any"][1] / seconds["resident"][1], 2),
        "cold_alone_ms": quantiles(alone), "loaded": loaded, "answers": answers, "stale": stale,
        "cached_tokens": cached,
    }  # fmt: skip
    return result | {"complaints": complaints(result, options.room)}


def complaints(result: dict[str, Any], room: int) -> list[str]:
    """What is not as it should be."""
    found = {
        "more adapters are loaded than there is room for": result["loaded"] > room,
        "p99 of the first token with cold adapters above twice that with loaded ones": result["times"] > 2,
        "a stale answer": result["stale"] > 0,
        "nothing came from the cache while names were loaded again": result["cached_tokens"] == 0,
    }
    return [name for name, wrong in found.items() if wrong]


async def due(http: httpx.AsyncClient, names: list[str], rate: float, tokens: int, drawn: random.Random) -> list[float]:
    """Seconds to the first token of requests that come whatever has become of the others."""
    async with asyncio.TaskGroup() as group:
        running = []
        for name in names:
            running.append(group.create_task(first_token(http, name, tokens)))
            await asyncio.sleep(drawn.expovariate(rate))
    return [task.result() for task in running]


async def first_token(http: httpx.AsyncClient, model: str, tokens: int) -> float:
    """Seconds to the first token of an answer, which is read to its end."""
    body = {"model": model, "prompt": f"{random.random()} {PROMPT}", "max_tokens": tokens, "ignore_eos": True}
    start, first = time.perf_counter(), 0.0
    async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and not first:
                first = time.perf_counter() - start
    return first


async def cold(http: httpx.AsyncClient, name: str, tokens: int) -> float:
    """How much longer an adapter's first request takes than its second, with nothing else on the server."""
    return await first_token(http, name, tokens) - await first_token(http, name, tokens)


def quantiles(seconds: list[float]) -> list[float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(seconds)
    return [round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1) for share in (0.5, 0.99, 1)]


# ── a name that is loaded again ──


@dataclass(slots=True)
class Name:
    """Numbers of its contents: those that it was last told to have, and those that it has for certain."""

    sent: int = 0
    loaded: int = 0
    over: bool = False


async def reload(http: httpx.AsyncClient, options: Any) -> tuple[int, int, int]:
    """Stale answers, all answers, and tokens that came from the cache."""
    texts = []
    for name in ("x", "y"):
        await load(http, name, name)
        texts.append((await say(http, name))[0])
    assert texts[0] != texts[1], "the two adapters say the same: nothing could be told from that"
    await load(http, "name", "x")
    state = Name()
    clients = [asyncio.create_task(ask(http, state, texts)) for _ in range(options.clients)]
    for state.sent in range(1, options.reloads + 1):
        await asyncio.sleep(0.5)
        await load(http, "name", "xy"[state.sent % 2], load_inplace=True)
        state.loaded = state.sent
    state.over = True
    stale, answers, cached = (sum(column) for column in zip(*await asyncio.gather(*clients), strict=True))
    return stale, answers, cached


async def ask(http: httpx.AsyncClient, state: Name, texts: list[str]) -> tuple[int, int, int]:
    """As `reload`, of one client."""
    stale = answers = cached = 0
    while not state.over:
        oldest = state.loaded
        text, found = await say(http, "name")
        stale += text not in {texts[number % 2] for number in range(oldest, state.sent + 1)}
        answers, cached = answers + 1, cached + found
    return stale, answers, cached


async def load(http: httpx.AsyncClient, name: str, path: str, **more: Any) -> None:
    answer = await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **more})
    assert answer.status_code == 200, answer.text


async def say(http: httpx.AsyncClient, model: str) -> tuple[str, int]:
    """An answer, and how much of its prompt came from the cache."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = (await http.post("/v1/completions", json=body)).raise_for_status().json()
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


if __name__ == "__main__":
    main()
