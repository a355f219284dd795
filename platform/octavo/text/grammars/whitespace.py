"""Endless white space in JSON ends: models like to go on with line breaks where a grammar allows them for ever."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from octavo.step import Uint32

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MOST = 16
"""Bytes of white space in a row outside of strings after which more is not allowed: indentation of eight levels."""

_BLANK = b" \t\r\n"
_INTERESTING = re.compile(rb'["\\]')


@dataclass(slots=True)
class WhitespaceRun:
    """Follows the bytes of a JSON text.

    Attributes:
        run: bytes of white space in a row, outside of strings.
    """

    run: int = 0
    _in_string: bool = False
    _escaped: bool = False

    def push(self, data: bytes) -> None:
        """Go on by a token's bytes."""
        if b'"' not in data and b"\\" not in data:
            self._plain(data)
            return
        start = 0
        for match in _INTERESTING.finditer(data):
            self._plain(data[start : match.start()])
            start = match.end()
            self.run = 0
            if self._escaped:
                self._escaped = False
            elif match.group() == b'"':
                self._in_string = not self._in_string
            else:
                self._escaped = self._in_string
        self._plain(data[start:])

    def copy(self) -> WhitespaceRun:
        """The same, to go its own way."""
        return replace(self)

    @property
    def is_too_long(self) -> bool:
        """Whether white space alone may not follow."""
        return self.run >= MOST

    def _plain(self, data: bytes) -> None:
        """Bytes without quotes and backslashes."""
        if not data:
            return
        self._escaped = False
        if b"\n" in data:  # a string has none: what came before was no JSON, but a thought with one quote
            self._in_string = False
        if not self._in_string:
            rest = len(data) - len(data.rstrip(_BLANK))
            self.run = self.run + rest if rest == len(data) else rest


def whitespace_tokens(trie: LLTokenizer, words: int) -> Uint32:
    """A mask of the tokens that are white space and nothing else, as in `octavo.step.SamplingRows.masks`.

    It is the first mask of a text of white space: asking for each token's bytes takes 200 times as long.
    """
    from llguidance import LLMatcher

    matcher = LLMatcher(trie, r"start: /[ \t\r\n]+/", log_level=0)
    return np.frombuffer(matcher.compute_bitmask(), np.uint32)[:words]
