"""Other weights and a sleep under load: no request fails, none is answered by both, none by blocks of the others.

    python tests/deployments/octavo_serve/proofs/weights.py configs/quickstart.yaml

The second set of weights is a copy of the model's file in which two layers have changed places. First each set says
alone what it has to say of `--prompts` prompts that begin alike, so that their blocks are shared. Then `--clients` ask
for these, streams and whole answers in turns, while the weights go over to the others and back `--swaps` times, and the
model sleeps and wakes up `--sleeps` times. An answer is wrong if it is neither's, or that of weights which had gone
when it was asked for. While the model sleeps 503 with Retry-After is what is promised; anything else is a failure.

The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from running import RunningServer, parser

from octavo.gguf_header import read_directory
from octavo.source import resolve_source

BEGIN = "The keeper of the lighthouse wrote down every ship that passed, its name, its flag and the hour. " * 3
KB = 1024


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--clients", type=int, default=4)
    options.add_argument("--prompts", type=int, default=6)
    options.add_argument("--tokens", type=int, default=24, help="of an answer")
    options.add_argument("--swaps", type=int, default=4)
    options.add_argument("--sleeps", type=int, default=2)
    options.add_argument("--pause", type=float, default=4.0, help="seconds of load between two changes")
    options.add_argument("--shards", type=int, default=1)
    given = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="oct"))
    try:
        config = write(given.config, folder, given.shards)
        with RunningServer(config, given.port) as server:
            result = asyncio.run(prove(server, given))
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result))
    sys.exit(1 if result["complaints"] else 0)


def write(config: Path, folder: Path, shards: int) -> Path:
    """The same config with two files that the weights may go over to: the model's own, and one that is changed."""
    document = yaml.safe_load(config.read_text())
    (model, *_) = document["applications"][0]["args"]["models"]
    model |= {"weight_folders": [str(folder)], "replicas": shards}
    file = resolve_source(model["source"]).path
    shutil.copy(file, folder / "own.gguf")
    shutil.copy(file, folder / "other.gguf")
    entries = read_directory(folder / "other.gguf")
    with (folder / "other.gguf").open("r+b") as opened:
        for name, one in entries.items():
            if name.startswith("blk.10."):
                exchange(opened, one, entries[name.replace("blk.10.", "blk.18.")])
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def exchange(opened: Any, one: Any, other: Any) -> None:
    """Let two tensors of a file change places."""
    assert one.num_bytes == other.num_bytes
    contents = []
    for each in (one, other):
        opened.seek(each.offset)
        contents.append(opened.read(each.num_bytes))
    for each, content in zip((other, one), contents, strict=True):
        opened.seek(each.offset)
        opened.write(content)


@dataclass(slots=True)
class State:
    """What is known of the weights now.

    Attributes:
        said: by set of weights, what each prompt's answer is.
        sure: the weights that have served alone since the last change was over; None while one is under way.
        found: answers by kind.
        seconds: of answers, by what happened meanwhile.
    """

    said: dict[str, list[str]] = field(default_factory=dict)
    sure: str | None = "own"
    sleeps: bool = False
    over: bool = False
    now: str = "steady"
    found: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


async def prove(server: RunningServer, options: Any) -> dict[str, Any]:
    state, phases = State(), dict[str, list[float]]()
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
        for name in ("own", "other"):
            await go_over(http, name)
            state.said[name] = [await say(http, number, options.tokens) for number in range(options.prompts)]
        assert all(map(str.__ne__, *state.said.values())), f"nothing could be told from what both say: {state.said}"
        await go_over(http, "own")
        clients = [asyncio.create_task(ask(http, state, options, number)) for number in range(options.clients)]
        for number in range(options.swaps):
            await asyncio.sleep(options.pause)
            name = ("other", "own")[number % 2]
            state.sure, state.now = None, "swap"
            for phase, seconds in (await go_over(http, name)).items():
                phases.setdefault(phase, []).append(seconds)
            state.sure, state.now = name, "steady"
        memory = [resident(server)]
        for _ in range(options.sleeps):
            await asyncio.sleep(options.pause)
            state.sleeps = True
            answer = (await http.post("/sleep")).raise_for_status().json()
            phases.setdefault("sleep", []).append(answer["seconds"])
            memory.append(resident(server))
            await asyncio.sleep(1.0)
            answer = (await http.post("/wake_up")).raise_for_status().json()
            phases.setdefault("wake_up", []).append(answer["seconds"])
            await asyncio.sleep(0.5)  # until the gateway says so
            state.sleeps = False
            memory.append(resident(server))
        await asyncio.sleep(options.pause)
        state.over = True
        await asyncio.gather(*clients)
    result = {
        "answers": dict(state.found), "errors": state.errors[:5], "phases_s": phases, "shards_mb": memory,
        "answer_ms": {name: quantiles(values) for name, values in state.seconds.items()},
    }  # fmt: skip
    return result | {"complaints": complaints(state, options)}


def complaints(state: State, options: Any) -> list[str]:
    """What is not as it should be."""
    found = {
        "a request failed": state.found["failed"] > 0,
        "an answer is of neither set of weights": state.found["neither"] > 0,
        "an answer is of weights that had gone": state.found["stale"] > 0,
        "nothing was answered by both sets": not (state.found["own"] and state.found["other"]),
        "nobody was told that the model sleeps": options.sleeps > 0 and not state.found["asleep"],
    }
    return [name for name, wrong in found.items() if wrong]


async def go_over(http: httpx.AsyncClient, name: str) -> dict[str, float]:
    """Serve these weights; seconds by phase."""
    answer = await http.post("/v1/update_weights", json={"path": f"{name}.gguf"})
    assert answer.status_code == 200, answer.text
    seconds: dict[str, float] = answer.json()["seconds"]
    return seconds


def body_of(number: int, tokens: int) -> dict[str, Any]:
    prompt = f"{BEGIN}Entry {number}:"
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


async def say(http: httpx.AsyncClient, number: int, tokens: int) -> str:
    answer = (await http.post("/v1/completions", json=body_of(number, tokens))).raise_for_status().json()
    text: str = answer["choices"][0]["text"]
    return text


async def stream(http: httpx.AsyncClient, number: int, tokens: int) -> tuple[int, str]:
    """Status and text of a streamed answer."""
    text = ""
    async with http.stream("POST", "/v1/completions", json=body_of(number, tokens) | {"stream": True}) as answer:
        if answer.status_code != 200:
            return answer.status_code, (await answer.aread()).decode() + str(answer.headers.get("retry-after"))
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    return 500, line
                text += event["choices"][0]["text"]
    return 200, text


async def whole(http: httpx.AsyncClient, number: int, tokens: int) -> tuple[int, str]:
    answer = await http.post("/v1/completions", json=body_of(number, tokens))
    if answer.status_code != 200:
        return answer.status_code, answer.text + str(answer.headers.get("retry-after"))
    return 200, answer.json()["choices"][0]["text"]


async def ask(http: httpx.AsyncClient, state: State, options: Any, client: int) -> None:
    """One request after the other; each answer is one of those that the weights said alone."""
    turn = client
    while not state.over:
        turn += 1
        number, sure, slept, now = turn % options.prompts, state.sure, state.sleeps, state.now
        begun = time.perf_counter()
        try:
            status, text = await (stream if turn % 2 else whole)(http, number, options.tokens)
        except httpx.HTTPError as error:
            status, text = 0, repr(error)
        if status == 503 and "is asleep until" in text and not text.endswith("None") and (slept or state.sleeps):
            state.found["asleep"] += 1
            await asyncio.sleep(0.2)
            continue
        if status != 200:
            state.found["failed"] += 1
            state.errors.append(f"{status} {text:.300}")
            await asyncio.sleep(0.2)
            continue
        of = [name for name, said in state.said.items() if said[number] == text]
        kind = of[0] if of else "neither"
        if sure is not None and sure == state.sure and now == state.now == "steady" and of and kind != sure:
            kind = "stale"
        state.found[kind] += 1
        state.seconds.setdefault(now, []).append(time.perf_counter() - begun)


def quantiles(seconds: list[float]) -> list[float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(seconds)
    return [round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1) for share in (0.5, 0.99, 1)]


def resident(server: RunningServer) -> float:
    """Memory of the shards' processes, in MB."""
    total = 0
    for pid in server.shards():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return round(total / KB, 1)


if __name__ == "__main__":
    main()
