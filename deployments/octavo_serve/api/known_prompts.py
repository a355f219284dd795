"""Prompts that were asked lately, by what they say: the earlier prompt that is nearest to a new one is found in
microseconds, whichever part of it has changed.

A prompt is found by the hash of its last full block, where a new one goes on from all of it; by its beginnings; by a
chat's first messages, and where it is none by its sketch: the least hashes of its runs of tokens (bottom-k MinHash,
Broder 1997), of which a small change anywhere leaves most.

Each owner's prompts are found by that owner alone; `of_others` is for counts and operators.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.request import Request
from octavo_serve.api.chats import Chat

RUN, KEPT = 4, 4
"""Tokens of a run, and hashes of a sketch."""
_BEGINNINGS = (64, 32, 16, 8)
"""Tokens of the beginnings by which a prompt is found."""
_MESSAGES = 3
"""First messages of a chat by which it is found."""
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
        found_by: what others find it by beside their own blocks; `keys` are its places in the indices.
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
    found_by: Sequence[Hashable] = ()
    keys: Sequence[Hashable] = ()

    @classmethod
    def of(cls, request: Request, owner: str, model: str, chat: Chat | None, at: float) -> KnownPrompt:
        """A prompt that is about to be asked."""
        messages = () if chat is None else chat.messages
        tokens = array("I", request.prompt_token_ids)
        hashes = [hash((each.role, _plain(each.content), _plain(each.model_extra))) for each in messages]
        return cls(
            request_id=request.request_id,
            owner=owner,
            model=model,
            tokens=tokens,
            num_prompt=len(request.prompt_token_ids),
            chain=request.block_hashes or (),
            namespace=request.cache_salt,
            adapter=request.adapter_digest,
            messages=hashes,
            roles=[each.role for each in messages],
            tools=_of_tools(None if chat is None else chat.tools),
            at=at,
            found_by=_found_by(tokens, hashes),
        )

    @property
    def size(self) -> int:
        """Bytes, about."""
        return _OVERHEAD + 4 * len(self.tokens) + 60 * len(self.chain) + 80 * len(self.messages)


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
        owners = (prompt.owner, None) if prompt.owner else ("",)  # without keys there is one owner
        found_by = (*prompt.chain[-1:], *prompt.found_by)
        prompt.keys = [(owner, prompt.model, each) for owner in owners for each in found_by]
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

        longest = next(found(reversed(prompt.chain)), ())
        return (known for each in (longest, *found(prompt.found_by)) for known in each if known is not prompt)


def in_common(one: KnownPrompt, other: KnownPrompt) -> int:
    """Leading tokens that a prompt has in common with another one and its answer."""
    size = one.tokens.itemsize
    a, b = one.tokens[: one.num_prompt].tobytes(), other.tokens.tobytes()
    low, high = 0, min(len(a), len(b)) // size
    while low < high:  # bytes are compared a hundred times as fast as tokens
        middle = (low + high + 1) // 2
        if a[low * size : middle * size] == b[low * size : middle * size]:
            low = middle
        else:
            high = middle - 1
    return low


def _found_by(tokens: array[int], messages: Sequence[int]) -> list[Hashable]:
    beginnings = [tokens[:count].tobytes() for count in _BEGINNINGS if count <= len(tokens)]
    return [*beginnings, *(messages[:_MESSAGES] or _sketch(np.frombuffer(tokens, np.uint32)))]


def _sketch(tokens: NDArray[np.uint32]) -> list[int]:
    count = len(tokens) - RUN + 1
    if count <= 0:
        return []
    mixed = tokens[:count] * _MIX[0]
    for place in range(1, RUN):
        mixed += tokens[place : place + count] * _MIX[place]
    mixed ^= mixed >> np.uint32(15)
    mixed *= _MIX[0]
    kept: list[int] = (mixed if count <= KEPT else np.partition(mixed, KEPT - 1)[:KEPT]).tolist()
    return kept


def _of_tools(tools: Sequence[Mapping[str, Any]] | None) -> tuple[int, int]:
    each = [hash(repr(tool)) for tool in tools or ()]
    return hash(tuple(each)), hash(frozenset(each))


def _plain(value: Any) -> str:
    """What can be hashed, and the same for the same."""
    return value if isinstance(value, str) else repr(value) if value else ""
