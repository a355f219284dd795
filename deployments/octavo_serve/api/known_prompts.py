"""Prompts that were asked lately, by what they say: the earlier prompt that is nearest to a new one is found in
microseconds, whichever part of it has changed.

A prompt is found by the hash of its last full block, where a new one goes on from all of it; by its beginnings; and by
its sketch: the least hashes of its runs of tokens (bottom-k MinHash, Broder 1997), of which a small change anywhere
leaves most.

Each owner's prompts are found by that owner alone; `of_others` is for counts and operators.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.request import Request
from octavo_serve.api.chats import Chat

RUN, KEPT = 4, 4
"""Tokens of a run, and hashes of a sketch."""
_BEGINNINGS = (64, 32, 16, 8)
"""Tokens of the beginnings by which a prompt is found."""
_ALIKE = 3
"""Prompts that are kept for one hash, the latest first."""
_MIX = [np.uint32(2654435761 ** (place + 1) % 2**32 | 1) for place in range(RUN)]
_OVERHEAD = 8000
"""Bytes of a prompt's record, its places in the indices and what else is told of its request."""


@dataclass(slots=True, eq=False)
class KnownPrompt:
    """A prompt, and the first answer to it.

    Attributes:
        owner: name of the key that asked.
        model: what block hashes start from; an adapter's is its base model's.
        tokens: of the prompt, and once it has ended of the answer.
        num_prompt: how many are the prompt's.
        chain: hashes of the prompt's full blocks.
        namespace, adapter: which cached blocks it shares; as in `Request`.
        messages: hashes of a chat's messages; empty where it is none.
        roles: of these messages.
        tools: hashes of a chat's tools in their order, and in any order.
        at: seconds on the monotonic clock.
        shard: where it ran; "" before its first token.
        began: when its first token came, by the same clock.
    """

    request_id: str
    owner: str
    model: str
    tokens: array[int]
    num_prompt: int
    chain: Sequence[bytes]
    namespace: str
    adapter: str
    messages: Sequence[int]
    roles: Sequence[str]
    tools: tuple[int, int]
    at: float
    shard: str = ""
    began: float = math.inf
    keys: list[Hashable] = field(default_factory=list)

    @classmethod
    def of(cls, request: Request, owner: str, model: str, chat: Chat | None, at: float) -> KnownPrompt:
        """A prompt that is about to be asked."""
        messages = () if chat is None else chat.messages
        return cls(
            request_id=request.request_id,
            owner=owner,
            model=model,
            tokens=array("I", request.prompt_token_ids),
            num_prompt=len(request.prompt_token_ids),
            chain=request.block_hashes or (),
            namespace=request.cache_salt,
            adapter=request.adapter_digest,
            messages=[_hash((each.role, each.content, each.model_extra)) for each in messages],
            roles=[each.role for each in messages],
            tools=_of_tools(None if chat is None else chat.tools),
            at=at,
        )

    @property
    def size(self) -> int:
        """Bytes, about."""
        return _OVERHEAD + 4 * len(self.tokens) + 60 * len(self.chain) + 80 * len(self.messages)

    def numbers(self) -> NDArray[np.uint32]:
        """The tokens, without a copy."""
        return np.frombuffer(self.tokens, np.uint32)


class KnownPrompts:
    """The last prompts, as many as their bytes allow.

    Args:
        max_bytes: of all of them.
        forgotten: told of each that goes.
    """

    def __init__(self, max_bytes: int, forgotten: Callable[[KnownPrompt], object]) -> None:
        self._max_bytes = max_bytes
        self._forgotten = forgotten
        self._bytes = 0
        self._kept: OrderedDict[KnownPrompt, int] = OrderedDict()  # -> bytes that it is counted with
        self._found: dict[Hashable, tuple[KnownPrompt, ...]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, prompt: KnownPrompt) -> None:
        """Keep a prompt; those that were asked longest ago go."""
        found_by = (*prompt.chain[-1:], *_beginnings(prompt), *_sketch(prompt))
        for owner in (prompt.owner, None):
            prompt.keys += [(owner, prompt.model, each) for each in found_by]
        for key in prompt.keys:
            self._found[key] = (prompt, *self._found.get(key, ())[: _ALIKE - 1])
        self._kept[prompt] = 0
        self.weigh(prompt)

    def weigh(self, prompt: KnownPrompt) -> None:
        """Count a prompt that has grown."""
        if prompt not in self._kept:
            return
        self._bytes += prompt.size - self._kept[prompt]
        self._kept[prompt] = prompt.size
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self.forget(next(iter(self._kept)))

    def forget(self, prompt: KnownPrompt) -> None:
        """Keep a prompt no longer."""
        self._bytes -= self._kept.pop(prompt, 0)
        self.hide(prompt)
        self._forgotten(prompt)

    def hide(self, prompt: KnownPrompt) -> None:
        """Find a prompt no longer: none of it was computed."""
        for key in prompt.keys:
            others = tuple(each for each in self._found.pop(key, ()) if each is not prompt)
            if others:
                self._found[key] = others

    def nearest(self, prompt: KnownPrompt) -> KnownPrompt | None:
        """The owner's earlier prompt with the longest beginning in common; None where nothing of it is in any."""
        return self._nearest(prompt, prompt.owner)

    def of_others(self, prompt: KnownPrompt) -> KnownPrompt | None:
        """The same among the prompts of all owners."""
        return self._nearest(prompt, None)

    def _nearest(self, prompt: KnownPrompt, owner: str | None) -> KnownPrompt | None:
        found = list(dict.fromkeys(self._candidates(prompt, owner)))
        return max(found, key=lambda each: (in_common(prompt, each), each.at), default=None)

    def _candidates(self, prompt: KnownPrompt, owner: str | None) -> Iterator[KnownPrompt]:
        def found(by: Iterable[Hashable]) -> Iterator[tuple[KnownPrompt, ...]]:
            alike = (self._found.get((owner, prompt.model, each), ()) for each in by)
            return (each for each in alike if each)

        longest = next(found(reversed(prompt.chain)), ()), next(found(_beginnings(prompt)), ())
        return (known for each in (*longest, *found(_sketch(prompt))) for known in each if known is not prompt)


def in_common(one: KnownPrompt, other: KnownPrompt) -> int:
    """Leading tokens that a prompt has in common with another one and its answer."""
    a, b = one.numbers()[: one.num_prompt], other.numbers()
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    place = int(differs.argmax()) if length else 0
    return place if length and differs[place] else length


def _beginnings(prompt: KnownPrompt) -> list[Hashable]:
    """Of its first tokens, the longest first."""
    return [prompt.tokens[:count].tobytes() for count in _BEGINNINGS if count <= prompt.num_prompt]


def _sketch(prompt: KnownPrompt) -> list[Hashable]:
    tokens = prompt.numbers()[: prompt.num_prompt]
    count = len(tokens) - RUN + 1
    if count <= 0:
        return []
    mixed = np.zeros(count, np.uint32)
    for place, factor in enumerate(_MIX):
        mixed += (tokens[place : place + count] + np.uint32(place + 1)) * factor
    mixed ^= mixed >> np.uint32(15)
    mixed *= _MIX[0]
    kept: list[Hashable] = (mixed if count <= KEPT else np.partition(mixed, KEPT - 1)[:KEPT]).tolist()
    return kept


def _of_tools(tools: Sequence[Mapping[str, Any]] | None) -> tuple[int, int]:
    each = [_hash(tool) for tool in tools or ()]
    return hash(tuple(each)), hash(frozenset(each))


def _hash(value: Any) -> int:
    """Of plain values; in one process alone."""
    return hash(value) if isinstance(value, str) else hash(repr(value))
