from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.stop import StopStrings


def run(stops: list[str], pieces: list[str], include: bool = False) -> tuple[str, str | None]:
    finder, out = StopStrings(stops, include), ""
    for piece in pieces:
        text, stop = finder.push(piece)
        out += text
        if stop is not None:
            return out, stop
    return out + finder.finish(), None


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ([], ["abc"], ("abc", None)),
        (["X"], ["abXcd"], ("ab", "X")),
        (["STOP"], ["a ST", "OP b"], ("a ", "STOP")),
        (["STOP"], ["a ST", "ART"], ("a START", None)),
        (["STOP"], ["a STO"], ("a STO", None)),
        (["aab"], ["aaab"], ("a", "aab")),
        (["world", "lo w"], ["hello world"], ("hel", "lo w")),  # the one that ends first
        (["b", "ab"], ["xab"], ("x", "ab")),  # of two that end alike, the longer
        (["\n\n"], ["a\n", "\nb"], ("a", "\n\n")),
        (["é🙂"], ["xé", "🙂y"], ("x", "é🙂")),
    ],
)
def test_cases(stops, pieces, expected):
    assert run(stops, pieces) == expected


def test_stop_string_is_kept_where_asked_for():
    assert run(["STOP"], ["a ST", "OP b"], include=True) == ("a STOP", "STOP")


def test_only_what_may_start_a_stop_string_is_held():
    finder = StopStrings(["</end>", "\nUser:"])
    assert finder.push("text </") == ("text ", None)
    assert finder.push("b> more\n") == ("</b> more", None)
    assert finder.push("Us") == ("", None)
    assert finder.finish() == "\nUs"


def test_a_match_inside_unsearched_text_passes_but_may_begin_there():
    finder = StopStrings(["ab", "abcd"])
    assert finder.push("xab", search=False) == ("x", None)
    assert finder.push("c") == ("", None)
    assert finder.push("d!") == ("", "abcd")


def test_unsearched_stop_is_not_found_later():
    finder = StopStrings(["ab", "abcd"])
    assert finder.push("ab", search=False)[1] is None
    assert finder.push("x") == ("abx", None)


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)
PIECES = st.lists(st.text("abc", max_size=5), max_size=10)


@given(stops=STOPS, pieces=PIECES, include=st.booleans())
def test_the_way_text_is_cut_does_not_matter(stops, pieces, include):
    assert (
        run(stops, pieces, include)
        == run(stops, ["".join(pieces)], include)
        == run(stops, list("".join(pieces)), include)
    )


@given(stops=STOPS, pieces=PIECES)
def test_the_first_match_ends_the_text(stops, pieces):
    text = "".join(pieces)
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if ends:
        end, length, stop = min(ends)
        assert run(stops, pieces) == (text[: end + length], stop)
    else:
        assert run(stops, pieces) == (text, None)
