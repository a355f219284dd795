from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.text import WORDS, Calibration, Segment, passage, render


@given(st.text(), st.text(), st.integers(1, 300), st.integers(1, 300))
def test_a_longer_passage_begins_with_the_shorter_one(salt: str, key: str, a: int, b: int) -> None:
    short, long = (passage(salt, key, count).split() for count in sorted((a, b)))
    assert long[: len(short)] == short


def test_salt_and_key_change_the_first_words() -> None:
    starts = {tuple(passage(salt, key, 5).split()) for salt in "abcd" for key in "wxyz"}
    assert len(starts) == 16


def test_words_are_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS)


def test_render_counts_tokens_as_the_server_does() -> None:
    segments = (Segment("system", 100), Segment("own", 60))
    text = render(segments, "salt", Calibration(per_word=2.0, overhead=20.0))
    assert len(text.split()) == 50 + 20
    assert text.startswith(passage("salt", "system", 50))
    assert len(render(segments, "salt", Calibration(2.0, 20.0), first=False).split()) == 80


def test_given_text_is_sent_as_it_is() -> None:
    assert render((Segment("a", 3, "Hi, you!"),), "salt", Calibration()) == "Hi, you!"
