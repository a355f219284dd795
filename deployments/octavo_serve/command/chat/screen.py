"""Answers as they grow: Markdown in a terminal, plain text elsewhere.

Markdown cannot be printed as it comes, because its end may change what stands before it; nor can it be redrawn as a
whole, because a terminal takes back no line that has scrolled away. So blocks that are complete are printed for good,
and only the last one is drawn anew, as much of it as the terminal holds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from octavo_serve.command.chat.talk import Piece
from octavo_serve.command.plain_text import clean

_FENCE = re.compile(r"\s*(```+|~~~+)")
_GOES_ON = re.compile(r"\s|[-*+] |\d{1,9}[.)] ")  # an entry of a list, or what belongs to one
_DECIDED = 5
"""Characters of a line after which it is known whether it begins a block."""
_PER_SECOND = 8


def split_finished(text: str) -> tuple[str, str]:
    """Markdown whose rendering no later text changes, and the rest."""
    cut = place = 0
    fence, blank = "", False
    for line in text.splitlines(keepends=True):
        if not fence and blank and not _GOES_ON.match(line) and (line.endswith("\n") or len(line) >= _DECIDED):
            cut = place
        if (mark := _FENCE.match(line)) is not None and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        blank = not line.strip()
        place += len(line)
    return text[:cut], text[cut:]


class Answer:
    """What has come of one answer, and how it is shown.

    Attributes:
        text: of the answer, without its reasoning.
        tokens: as the model counts them; 0 where nobody says.
    """

    def __init__(self, console: Console) -> None:
        self.text, self.tokens = "", 0
        self._begin, self._first = time.monotonic(), 0.0
        self._console = console
        self._live = Live(console=console, refresh_per_second=_PER_SECOND, transient=True, vertical_overflow="visible")
        self._rest, self._thinking, self._begun = "", False, False

    def __enter__(self) -> Answer:
        if self._console.is_terminal:
            self._live.update(Text("...", style="dim"))
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.update("")
            self._live.stop()
            self._print(self._rest)
        elif self.text:
            self._console.print(soft_wrap=True)

    def add(self, piece: Piece) -> None:
        """Show more."""
        text = clean(piece.text)
        self._first = self._first or time.monotonic()
        self.text += "" if piece.thought else text
        self.tokens = piece.tokens or self.tokens
        if self._console.is_terminal:
            self._grow(text, piece.thought)
        elif not piece.thought:
            self._console.print(text, end="", soft_wrap=True, markup=False, highlight=False)

    def figures(self) -> str:
        """How fast it came, in a few words; "" where the tokens are not known."""
        seconds = time.monotonic() - self._first
        rate = f", {(self.tokens - 1) / seconds:.0f} tokens/s" if self.tokens > 1 and seconds > 0 else ""
        return f"{self.tokens} tokens, the first after {self._first - self._begin:.2f} s{rate}" if self.tokens else ""

    def _grow(self, text: str, thought: bool) -> None:
        if thought != self._thinking and text:
            self._print(self._rest)
            self._rest, self._thinking = "", thought
        done, self._rest = split_finished(self._rest + text)
        self._print(done)
        self._live.update(_End(self._rendered(self._rest)))

    def _print(self, text: str) -> None:
        if text.strip():
            if self._begun:
                self._console.print()
            self._console.print(self._rendered(text))
            self._begun = True

    def _rendered(self, text: str) -> Markdown | Text:
        return Text(text.strip(), style="dim italic") if self._thinking else Markdown(text, hyperlinks=False)


class _End:
    """The last lines of something, as many as fit."""

    def __init__(self, whole: Markdown | Text) -> None:
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._whole, options, pad=False)
        yield from _lines(lines[-max(1, console.size.height - 2) :])


def _lines(lines: list[list[Segment]]) -> Iterator[Segment]:
    for line in lines:
        yield from line
        yield Segment.line()
