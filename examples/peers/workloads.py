"""Four workloads as token ids. A seed changes the ids, never the lengths, so that runs compare and no cache helps.

W1: one request of 128 + 128 tokens. W2: 64 requests at once, lengths log-normal, 9,643 + 5,901 tokens in all.
W3: 8 prompts of 1,024 tokens. W4: 48 requests of 32 + 32 tokens behind one of four shared prefixes of 768 tokens.
"""

from __future__ import annotations

import math
import random

VOCABULARY = range(100, 49_000)
"""Plain tokens of SmolLM2, without its special ones."""

Requests = list[tuple[list[int], int]]
"""Prompt and number of output tokens: greedy, and no token ends it."""


def make(name: str, seed: int) -> Requests:
    """The requests of W1 .. W4; of W0 a single token, to know that an engine answers."""
    ids, lengths = random.Random(f"{name}/{seed}"), random.Random(f"{name}/shape")

    def prompt(length: int) -> list[int]:
        return [ids.choice(VOCABULARY) for _ in range(length)]

    if name == "W2":
        pairs = [(_length(lengths, 160, 0.8, 512), _length(lengths, 96, 0.7, 256)) for _ in range(64)]
        return [(prompt(before), after) for before, after in pairs]
    if name == "W4":
        prefixes = [prompt(768) for _ in range(4)]
        return [(prefixes[i % 4] + prompt(32), 32) for i in range(48)]
    count, before, after = {"W0": (1, 16, 1), "W1": (1, 128, 128), "W3": (8, 1024, 1)}[name]
    return [(prompt(before), after) for _ in range(count)]


def _length(draw: random.Random, mean: float, sigma: float, most: int) -> int:
    return max(16, min(most, round(draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))
