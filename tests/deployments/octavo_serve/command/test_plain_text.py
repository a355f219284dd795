"""Nothing that a model writes reaches the terminal as a command."""

from __future__ import annotations

import pytest

from octavo_serve.command.plain_text import clean


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[2J\x1b]0;mine\x07 \x1b]52;c;aGk=\x1b\\", "[2J]0;mine ]52;c;aGk=\\"),
        ("\x9b31m\x90q\x9c\x85", "31mq"),  # the same as single characters of C1
        ("over\rwritten\b\b\x7f\x00", "overwritten"),
        ("tab\tand\nline, é 漢 🦊", "tab\tand\nline, é 漢 🦊"),
    ],
)
def test_control_characters_go_and_text_stays(text: str, left: str) -> None:
    assert clean(text) == left
    assert "".join(map(clean, text)) == left
