"""Whether a text ends with a stop string: beams are told apart by that before anybody reads them."""

from __future__ import annotations

from typing import Self

from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo.text.detokenizer import MAX_HELD, IncrementalDetokenizer
from octavo.text.tokenizer import Tokenizer

WINDOW = MAX_HELD + 4
"""Tokens on which the text of the last one depends: a character may begin there, or a run of byte tokens."""


class StopTexts:
    """The stop strings of a request.

    What is found is what `octavo.text.output` finds: of the strings that end in the text of the newest token, the one
    that ends first, and of those the longest.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt: list[int]) -> None:
        self._tokenizer, self._params, self._prompt = tokenizer, params, prompt
        self._longest = max(map(len, params.stop_strings))

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

    def push(self, end: str, last: list[int], count: int) -> tuple[str, str | None]:
        """The end of a text that has a token more, and the stop string that the token completes.

        Args:
            end: of the text before.
            last: WINDOW tokens, or all; the newest is the last.
            count: tokens of the text.
        """
        detokenizer = IncrementalDetokenizer(self._tokenizer, self._prompt, self._params.skip_special_tokens)
        detokenizer.push(last[:-1])
        text = end + detokenizer.push(last[-1:])
        stop = self._first(text, len(end)) if count > self._params.min_tokens else None
        return text[-self._longest :], stop

    def _first(self, text: str, known: int) -> str | None:
        places = [(text.find(stop, max(0, known - len(stop) + 1)), stop) for stop in self._params.stop_strings]
        found = [(start + len(stop), start, stop) for start, stop in places if start >= 0]
        return min(found)[2] if found else None
