"""Counts the tokens of answers with the model's own tokenizer, for servers that do not say how many they sent."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.sse import Count


def counter(path: Path) -> Count:
    """A counter by a `tokenizer.json`, or by the one in a folder.

    Raises:
        LoadTestError: there is none, or the library that reads it is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise LoadTestError("--tokenizer needs the library of that name: pip install tokenizers") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise LoadTestError(f"{file} is no tokenizer: {error}") from None

    def count(passages: list[str]) -> list[int]:
        """The whole text is cut into tokens at once, for a token may begin in one passage and end in the next."""
        offsets = tokenizer.encode("".join(passages), add_special_tokens=False).offsets
        ends = [end for _, end in offsets]
        return [bisect_right(ends, length) for length in accumulate(map(len, passages))]

    return count
