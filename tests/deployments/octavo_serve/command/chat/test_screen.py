"""Markdown that grows: finished blocks are printed once, whatever the cuts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from octavo_serve.command.chat.screen import Answer, split_finished
from octavo_serve.command.chat.talk import Piece


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("One.\n\nTwo", ""),  # "Two" may become anything
        ("One.\n\nTwo begins", "One.\n\n"),
        ("1. a\n\n2. b goes on", ""),  # one list, with its numbers
        ("- a\n\n  more of a, long", ""),
        ("```\na\n\nb goes on here", ""),
        ("```\na\n\nb\n```\n\nAfter it", "```\na\n\nb\n```\n\n"),
        ("~~~\n```\n\nstill inside\n", ""),
        ("# Head\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", "# Head\n\n"),
    ],
)
def test_only_what_cannot_change_is_finished(text: str, done: str) -> None:
    assert split_finished(text) == (done, text[len(done) :])


def screen(terminal: bool, height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=40, height=height, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


STORY = "# Title\n\nSome **bold** text.\n\n" + "\n\n".join(f"Paragraph number {i}." for i in range(30))


def test_a_long_answer_stands_there_once() -> None:
    console = screen(terminal=True, height=8)
    with Answer(console) as answer:
        for place in range(0, len(STORY), 7):
            answer.add(Piece(STORY[place : place + 7], tokens=place + 1))
    assert answer.text == STORY
    assert f"{answer.tokens} tokens, the first after" in answer.figures()
    text = shown(console)
    assert "**" not in text
    for i in range(29):  # the last was drawn before it was printed
        assert text.count(f"Paragraph number {i}.\n") + text.count(f"Paragraph number {i}. ") >= 1
    assert text.index("Paragraph number 3") < text.index("Paragraph number 20")


def test_without_a_terminal_the_text_comes_as_it_is_and_no_thought() -> None:
    console = screen(terminal=False)
    with Answer(console) as answer:
        for piece in (Piece("hm, [red]", True), Piece("**bo"), Piece("ld** [red]\x1b[2J " + "x" * 60)):
            answer.add(piece)
    assert shown(console) == "**bold** [red][2J " + "x" * 60 + "\n"


def test_thoughts_are_shown_apart_in_a_terminal() -> None:
    console = screen(terminal=True)
    with Answer(console) as answer:
        answer.add(Piece("Let me *think*.", True))
        answer.add(Piece("It is `4`."))
    assert answer.text == "It is `4`."
    assert shown(console).index("Let me *think*.") < shown(console).index("It is 4.")


def test_entities_become_no_escape_sequences() -> None:
    console = screen(terminal=True)
    before = Console(file=io.StringIO(), force_terminal=True, width=40, color_system=None)
    for sink, text in ((console, "a &#27;]0;t&#7; &#x9b;31m b"), (before, "a b")):
        with Answer(sink) as answer:
            answer.add(Piece(text))
    assert "\x1b]" not in shown(console)
    assert "\x9b" not in shown(console)
    assert shown(console).count("\x1b") == shown(before).count("\x1b")
