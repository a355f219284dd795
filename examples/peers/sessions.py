"""Conversations beside a small cache, at any OpenAI server: how much of their prompts is found, and first tokens.

    .venv/bin/python examples/peers/sessions.py http://127.0.0.1:8080 [--model NAME] [--sessions 20] [--turns 4]

What `examples/benchmark_disk_tier.py --only sessions` does in one process, over HTTP: one turn of each conversation
after the other, greedy, so that a server with memory for a tenth of them has to look elsewhere. Servers to hold beside
each other, with the same memory for keys and values:

    octavo serve MODEL --kv-cache-bytes N [--disk-cache-bytes M]
    llama-server -m MODEL -c TOKENS -np 1 [--cache-ram MIB]
    vllm serve MODEL with an offloading connector

The share of prompt tokens that were found is what the server says in `usage.prompt_tokens_details.cached_tokens`; null
where it says nothing. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

import httpx
import numpy as np

WORDS = ("harbour", "ledger", "north", "window", "copper", "garden", "signal", "river", "paper", "engine", "stone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", help="by default the first one that the server lists")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--first", type=int, default=600, help="words of a first turn")
    parser.add_argument("--later", type=int, default=60, help="words of those that follow")
    parser.add_argument("--answer", type=int, default=40, help="tokens")
    given = parser.parse_args()
    with httpx.Client(base_url=given.url, timeout=600) as http:
        given.model = given.model or http.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        print(json.dumps(sessions(http, given)))


def sessions(http: httpx.Client, given: argparse.Namespace) -> dict[str, Any]:
    """All turns; first tokens of those after the first one, and what was found of all prompts."""
    talks: list[list[dict[str, str]]] = [[] for _ in range(given.sessions)]
    firsts, tokens, cached = list[float](), 0, list[int]()
    for turn in range(given.turns):
        for number, talk in enumerate(talks):
            talk.append({"role": "user", "content": words(f"{number} {turn}", given.later if turn else given.first)})
            first, text, usage = ask(http, given, talk)
            talk.append({"role": "assistant", "content": text})
            firsts += [first] if turn else []
            tokens += usage.get("prompt_tokens", 0)
            if (found := (usage.get("prompt_tokens_details") or {}).get("cached_tokens")) is not None:
                cached.append(found)
    return {
        "model": given.model, "requests": given.sessions * given.turns, "prompt_tokens": tokens,
        "ttft_p50_s": statistics.median(firsts), "ttft_p90_s": float(np.quantile(firsts, 0.9)),
        "hit_rate": sum(cached) / tokens if cached and tokens else None,
    }  # fmt: skip


def ask(http: httpx.Client, given: argparse.Namespace, talk: list[dict[str, str]]) -> tuple[float, str, dict[str, Any]]:
    """Seconds to the first token, the answer, and what the server says of the use."""
    body = {
        "model": given.model, "messages": talk, "max_tokens": given.answer, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    begun, first, text, usage = time.perf_counter(), 0.0, "", dict[str, Any]()
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            said = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
            first = first or (time.perf_counter() - begun if said else 0.0)
            text, usage = text + said, event.get("usage") or usage
    return first, text, usage


def words(seed: str, count: int) -> str:
    """A text of no meaning."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + rng.choice("abcdefghij") for _ in range(count))


if __name__ == "__main__":
    main()
