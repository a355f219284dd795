"""Why a prompt's prefix was not in the cache where it ran: a class, decided by what is known and not by how texts look.

    what could have been found    full blocks of the prompt before its last token
    what was found                the shard says it with the first token
    the nearest earlier prompt    `known_prompts`, with its answer
    what the routers know         which shards hold a block now

Where the nearest prompt has more in common than was found, blocks were missing: another namespace or adapter, another
shard, evicted, gone with their shard, or not computed yet. Else the tokens differ: which message or tools do, or, where
all messages are the same, what the tokens at the first difference say, tells why.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.known_prompts import KnownPrompt, in_common

Reason = Literal[
    "short", "prompt_logprobs", "new", "namespace", "adapter", "other_shard", "evicted", "shard_gone", "concurrent",
    "header", "system", "tools_order", "tools", "history", "thinking", "retokenised", "template", "answer",
]  # fmt: skip

SENTENCES: Mapping[Reason, str] = {
    "short": "The prompt is shorter than a block and a token: only full blocks are cached.",
    "prompt_logprobs": "Log probabilities of the prompt were asked for, which no cache holds: all was computed.",
    "new": "What follows was never computed here before.",
    "namespace": "The same text was computed in another cache namespace (cache_salt, or another key's own).",
    "adapter": "The same text was computed with another adapter, or with none.",
    "other_shard": "Another shard holds more of it, but the request ran here: see the routing decision.",
    "evicted": "It was computed, and evicted since: the cache had no room for it.",
    "shard_gone": "The shard that computed it is gone, and its cache with it.",
    "concurrent": "The request that brings the same text was still being computed when this one began.",
    "header": "A few tokens changed near the beginning and the rest is the same: a time, an id or a billing line there "
    "makes every prompt new. Put it at the end.",
    "system": "The system prompt is another one.",
    "tools_order": "The same tools came in another order.",
    "tools": "The tools are others.",
    "history": "An earlier message was changed or left out.",
    "thinking": "The chat template drops the thinking of earlier answers, which were computed with it.",
    "retokenised": "The same text became other tokens: a model does not write as its tokenizer cuts.",
    "template": "The chat template wrote the same messages otherwise.",
    "answer": "The earlier answer came back otherwise than the model wrote it.",
}
REASONS: tuple[Reason, ...] = get_args(Reason)

_SHOWN, _BEFORE = 24, 8
"""Tokens of a difference that are shown, and of what is before it."""
_AGAIN = 8
"""Tokens that must be the same after a difference for the rest of a message to count as the same."""
_FAR = (4, 8, 16, 32, 64, 96)
"""Tokens after the first difference where it is looked for whether both go on alike."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of a prompt.

    Attributes:
        tokens: in the cache where it ran.
        shard: where that was.
        at: seconds on the monotonic clock, when it was looked for.
        block_size: tokens of a block.
        everything: the prompt's log probabilities were asked for.
    """

    tokens: int
    shard: str
    at: float
    block_size: int
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a prompt's prefix was not found.

    Attributes:
        possible: tokens that could have been in the cache.
        near: the nearest earlier prompt, if that is what it is about.
        common: tokens in common with it.
        message: number of the first message that differs; None where none does, or it is no chat.
    """

    reason: Reason
    possible: int
    near: KnownPrompt | None = None
    common: int = 0
    message: int | None = None


def miss_of(
    now: KnownPrompt,
    near: KnownPrompt | None,
    found: Found,
    shards: Mapping[str, Container[bytes]],
    tokenizer: Tokenizer,
    opens_reasoning: Callable[[], Sequence[str]] = tuple,
) -> Miss | None:
    """Why not all of a prompt was found that could have been; None where it was.

    Args:
        shards: hashes of the blocks that each shard holds.
        opens_reasoning: says what a model's thinking begins with.
    """
    size = found.block_size
    possible = (now.num_prompt - 1) // size * size
    if not possible or found.everything:
        return Miss("prompt_logprobs" if found.everything else "short", possible)
    if found.tokens >= possible:
        return None
    common = 0 if near is None else in_common(now, near)
    if near is None or common < found.tokens or not common:
        return Miss("new", possible)
    if min(common, possible) // size * size > found.tokens:
        return Miss(_lost(now, near, found, shards), possible, near, common)
    reason, message = _changed(now, near, common, tokenizer, opens_reasoning)
    return Miss(reason, possible, near, common, message)


def _lost(now: KnownPrompt, near: KnownPrompt, found: Found, shards: Mapping[str, Container[bytes]]) -> Reason:
    """The tokens are the same: why are their blocks not there?"""
    if near.adapter != now.adapter:
        return "adapter"
    if near.namespace != now.namespace:
        return "namespace"
    block = now.chain[found.tokens // found.block_size]
    if any(block in held for name, held in shards.items() if name != found.shard):
        return "other_shard"
    if near.began > found.at:
        return "concurrent"
    return "evicted" if near.shard in shards else "shard_gone"


def _changed(
    now: KnownPrompt, near: KnownPrompt, common: int, tokenizer: Tokenizer, opens: Callable[[], Sequence[str]]
) -> tuple[Reason, int | None]:
    """The tokens differ: who changed them?"""
    if common == len(near.tokens):
        return "new", None
    if now.tools != near.tools:
        return ("tools_order" if now.tools[1] == near.tools[1] else "tools"), None
    place = _first_difference(now.messages, near.messages)
    if place is not None and place < len(near.messages):
        if place == 0:
            again = goes_on_alike(now, near, common, _marks(tokenizer))
            return ("header" if again else "system" if now.roles[0] == "system" else "new"), 0
        return ("new" if place == len(near.messages) - 1 == len(now.messages) - 1 else "history"), place
    if not now.messages:
        if same_text(now, near, common, tokenizer):
            return "retokenised", None
        return ("header" if goes_on_alike(now, near, common) else "new"), None
    if any(opening in _text(tokenizer, near, common - 2, common + _BEFORE) for opening in opens()):
        return "thinking", place
    if same_text(now, near, common, tokenizer):
        return "retokenised", place
    return ("answer" if common >= near.num_prompt - _BEFORE else "template"), place


def _first_difference(now: Sequence[int], near: Sequence[int]) -> int | None:
    for place, (one, other) in enumerate(zip(now, near, strict=False)):
        if one != other:
            return place
    return min(len(now), len(near)) if len(now) != len(near) else None


@lru_cache(maxsize=8)
def _marks(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that no text of a message holds."""
    return frozenset(tokenizer.added_tokens.values())


def goes_on_alike(now: KnownPrompt, near: KnownPrompt, common: int, marks: Container[int] = ()) -> bool:
    """Whether a few tokens after the first difference both are the same again, in the same message."""
    a, b = now.tokens, near.tokens
    for far in _FAR:
        probe = b[common + far : common + far + _AGAIN]
        if len(probe) < _AGAIN or any(token in marks for token in b[common : common + far + _AGAIN]):
            return False
        if a[common : common + 2 * far + 2 * _AGAIN].tobytes().find(probe.tobytes()) >= 0:
            return True
    return False


def same_text(now: KnownPrompt, near: KnownPrompt, common: int, tokenizer: Tokenizer) -> bool:
    """Whether the first tokens that differ say the same, together with what follows."""
    start = max(0, common - 1)
    before = len(_text(tokenizer, now, start, common))
    one, other = (_text(tokenizer, each, start, common + _SHOWN) for each in (now, near))
    alike = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    widest = max(len(_text(tokenizer, each, start, common + 1)) for each in (now, near))
    return alike >= widest > before


def shown(now: KnownPrompt, near: KnownPrompt, common: int, tokenizer: Tokenizer) -> tuple[str, str, str]:
    """What is before the first difference, and both sides of it."""
    return (
        _text(tokenizer, now, common - _BEFORE, common),
        _text(tokenizer, near, common, common + _SHOWN),
        _text(tokenizer, now, common, min(common + _SHOWN, now.num_prompt)),
    )


def _text(tokenizer: Tokenizer, prompt: KnownPrompt, start: int, stop: int) -> str:
    return tokenizer.decode(prompt.tokens[max(0, start) : stop].tolist(), skip_special_tokens=False)
