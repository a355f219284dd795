"""Whether a text ends with a stop string: beams are told apart by that before anybody reads them."""

from __future__ import annotations

from typing import Self

from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo.text.detokenizer import MAX_HELD, IncrementalDetokenizer
from octavo.text.stop import StopStrings
from octavo.text.tokenizer import Tokenizer

_MARGIN = MAX_HELD + 4
"""Tokens before a stop string that are read too: a character may begin there, or a run of byte tokens."""


class StopTexts:
    """The stop strings of a request.

    It reads the last tokens of a text alone: as many as the longest has bytes. So what is found is what
    `octavo.text.output` finds in the whole text.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt: list[int]) -> None:
        self._tokenizer, self._params, self._prompt = tokenizer, params, prompt
        self._window = max(len(stop.encode("utf-8", "surrogatepass")) for stop in params.stop_strings) + _MARGIN

    @classmethod
    def of(cls, params: SamplingParams, tokenizer: Tokenizer | None, prompt: list[int]) -> Self | None:
        """Those of a request; None where it has none.

        Raises:
            BadRequest: there is no tokenizer to read them with.
        """
        if not params.stop_strings:
            return None
        if tokenizer is None:
            raise BadRequest("stop strings end beams, which needs a tokenizer, and this engine has none", "stop")
        return cls(tokenizer, params, prompt)

    def found(self, output: list[int]) -> str | None:
        """The stop string that the last token completes."""
        if len(output) <= self._params.min_tokens:
            return None
        text = IncrementalDetokenizer(self._tokenizer, self._prompt, self._params.skip_special_tokens)
        stops = StopStrings(self._params.stop_strings)
        *before, last = output[-self._window :]
        stops.push(text.push(before), search=False)
        return stops.push(text.push([last]))[1]
