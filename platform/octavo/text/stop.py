"""Finds stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first stop string, and holds back only what may be the beginning of one.

    The match that ends first wins; among matches that end at the same place, the longest. So the result does not depend
    on how the text is cut into pieces.

    Args:
        stops: non-empty strings; if there are none, all text is passed on at once.
        include_in_output: pass the matched string on as well.
    """

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._held = ""

    def push(self, text: str, search: bool = True) -> tuple[str, str | None]:
        """Add a piece of text.

        Args:
            search: False ignores stop strings that end within this piece.

        Returns:
            The text that is final, and the stop string that ended it or None. After a stop string nothing may be
            pushed.
        """
        checked = len(self._held)
        text = self._held + text
        match = self._first_match(text, checked) if search else None
        if match is None:
            kept = len(text) - self._possible_start(text)
            self._held = text[kept:]
            return text[:kept], None
        start, stop = match
        self._held = ""
        return text[: start + len(stop) if self._include else start], stop

    def finish(self) -> str:
        """The text still held back, once no more comes."""
        text, self._held = self._held, ""
        return text

    def _first_match(self, text: str, checked: int) -> tuple[int, str] | None:
        """Position and string of the match that ends first, beyond `checked` characters."""
        found = []
        for stop in self._stops:
            start = text.find(stop, max(0, checked - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start, stop))
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _possible_start(self, text: str) -> int:
        """Length of the text's longest suffix that is a proper prefix of a stop string."""
        longest = min(len(text), max((len(stop) for stop in self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(len(stop) > length and stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
