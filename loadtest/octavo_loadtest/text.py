"""Makes text with a given number of tokens for a server with an unknown tokenizer.

The words are short and common, so most tokenizers give each one token (with its space); the server's real count is
queried once before a run. A passage is a pure function of (salt, key): equal keys give equal words and different keys
differ from the first words on, so a prefix cache can hit only where the workload intends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources

import numpy as np

WORDS = resources.files("octavo_loadtest").joinpath("words.txt").read_text().split()


@dataclass(frozen=True, slots=True)
class Segment:
    """A passage of a prompt. Two prompts that begin with the same segments share that many tokens."""

    key: str
    tokens: int
    text: str = ""  # given text; else words are drawn for (salt, key)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the server counts: tokens = overhead + per_word * words."""

    per_word: float = 1.0
    overhead: float = 0.0  # of an empty prompt: the chat template's
    measured: bool = False


def render(segments: tuple[Segment, ...], salt: str, calibration: Calibration, first: bool = True) -> str:
    """The text of a prompt; the template's overhead comes off the last segment when it is the session's `first`."""
    spare = calibration.overhead if first else 0.0
    parts = []
    for segment in segments:
        tokens = segment.tokens - (spare if segment is segments[-1] else 0.0)
        parts.append(segment.text or passage(salt, segment.key, max(1, round(tokens / calibration.per_word))))
    return " ".join(parts)


def passage(salt: str, key: str, words: int) -> str:
    """So many words; a longer passage of the same key begins with the shorter one."""
    seed = int.from_bytes(blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest(), "little")
    drawn = np.random.default_rng(seed).integers(0, len(WORDS), words)
    return " ".join([WORDS[i] for i in drawn])
