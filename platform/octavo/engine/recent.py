"""What was generated lately in one cache namespace, and how often guesses held there."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import Literal, get_args

from octavo.engine.suffix import GRAM, LONGEST, SuffixIndex

_TOKENS = 8192
"""Tokens of a generation of outputs; two are kept. With its index one takes 100 KB."""

_NAMESPACES = 64

_AT_ONCE = 512
"""Tokens that are indexed when somebody looks for something: 0.1 ms."""

_LEAST, _MOST = 2 * GRAM, 4096
"""Tokens of an output that is kept, and how many of its last ones are."""

_PRIOR = (0.5, 0.5, 0.65, 0.75, 0.85, 0.95)
"""Chance that a guessed token is right where the match before it is of 3, 4, 5, 7, 11, 19 tokens or more."""

Origin = Literal["text", "recent", "predicted", "draft"]
"""Where a guess comes from: the sequence itself, recent outputs, what its request says of its answer, a draft model."""

ORIGINS: tuple[Origin, ...] = get_args(Origin)

DRAFTED = len(_PRIOR) * ORIGINS.index("draft")
"""The kind of a draft model's guesses."""

KINDS = DRAFTED + 1
"""Kinds of guesses: by the length of the match, from each origin that has one."""

_DRAFT_PRIOR = 0.75
"""Chance that a draft model's token is right, which somebody has chosen for it."""


def kind_of(length: int, origin: Origin) -> int:
    """The kind of a guess after a match."""
    return (min(length, LONGEST) - GRAM).bit_length() + len(_PRIOR) * ORIGINS.index(origin)


class Chances:
    """How often guesses of each kind were right, the longer ago the less.

    Args:
        forgetting: factor by which each new one reduces the weight of those before.
    """

    __slots__ = ("_forgetting", "_right", "_tried")

    def __init__(self, forgetting: float) -> None:
        self._forgetting = forgetting
        self._right, self._tried = [0.0] * KINDS, [0.0] * KINDS

    def learn(self, kind: int, *, right: bool) -> None:
        """Count a verified token, those before which were right."""
        self._right[kind] = self._right[kind] * self._forgetting + right
        self._tried[kind] = self._tried[kind] * self._forgetting + 1

    def of(self, kind: int, prior: float, weight: float) -> float:
        """The chance that a token is right; `prior` counts as `weight` tokens."""
        return (self._right[kind] + prior * weight) / (self._tried[kind] + weight)


class Namespace:
    """One cache namespace; nothing of it is used in another.

    Args:
        drafts: how often the draft model was right, wherever it was asked.
    """

    def __init__(self, drafts: Chances | None = None) -> None:
        self._chances = Chances(0.99)
        self._drafts = drafts or Chances(0.99)
        self._texts = [SuffixIndex(array("i"), _TOKENS)]

    def chance(self, kind: int) -> float:
        """The chance that a guessed token of a kind is right."""
        if kind == DRAFTED:
            return self._drafts.of(kind, _DRAFT_PRIOR, 8)
        return self._chances.of(kind, _PRIOR[kind % len(_PRIOR)], 8)

    def learn(self, kind: int, *, right: bool) -> None:
        """As in `Chances`."""
        (self._drafts if kind == DRAFTED else self._chances).learn(kind, right=right)

    def add(self, output: list[int]) -> None:
        """Keep an output; the oldest ones make room."""
        if len(output) < _LEAST:
            return
        output = output[-_MOST:]
        tokens = self._texts[0].tokens
        if len(tokens) + len(output) >= _TOKENS:
            tokens = array("i")
            self._texts = [SuffixIndex(tokens, _TOKENS), *self._texts[:1]]
        assert isinstance(tokens, array)
        tokens.append(-1)  # no token: a match ends here
        tokens.extend(output)

    def find(self, text: list[int]) -> tuple[SuffixIndex | None, int, int]:
        """The output that has the longest match of the end of a text; the rest as in `SuffixIndex.find`."""
        best: tuple[SuffixIndex | None, int, int] = None, 0, 0
        for index in self._texts:
            index.extend(min(len(index.tokens), index.size + _AT_ONCE))
            place, length = index.find(text)
            if length > best[2]:
                best = index, place, length
        return best


class Namespaces:
    """Those that were used lately, by the root of their block hashes."""

    def __init__(self) -> None:
        self._used: OrderedDict[bytes, Namespace] = OrderedDict()
        self._drafts = Chances(0.99)

    def of(self, root: bytes) -> Namespace:
        """The namespace; a new one may take the place of the one that nobody has asked for the longest."""
        found = self._used.pop(root, None) or Namespace(self._drafts)
        self._used[root] = found
        if len(self._used) > _NAMESPACES:
            self._used.popitem(last=False)
        return found
