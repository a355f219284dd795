"""Text from elsewhere, made harmless for a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|\r")


def clean(text: str) -> str:
    """The text without control characters except tab and newline: no escape sequence can move the cursor, change the
    title or the clipboard, or ask the terminal for an answer.

    What a sequence held besides its control character stays and can be read. Cut anywhere, the parts give the same.
    """
    return _CONTROL.sub("", text)
