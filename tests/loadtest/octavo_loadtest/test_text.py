from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_loadtest.text import WORDS, Calibration, Segment, passage, render


@settings(max_examples=40)
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


@given(
    st.lists(st.builds(Segment, st.sampled_from("abcd"), st.integers(40, 200)), min_size=1, max_size=4),
    st.floats(0.8, 2.5),
    st.floats(0, 30),
)
def test_the_tokens_that_were_planned_come_out(segments: list[Segment], per_word: float, overhead: float) -> None:
    """Counted as the server counts: to the nearest word of each segment."""
    words = len(render(tuple(segments), "salt", Calibration(per_word, overhead)).split())
    counted = overhead + per_word * words
    planned = sum(segment.tokens for segment in segments)
    assert abs(counted - planned) <= per_word * 0.5 * len(segments) + 1e-6


def test_prompts_that_begin_alike_share_their_text() -> None:
    one, other = (render((Segment("system", 50), Segment(key, 9)), "salt", Calibration()) for key in "ab")
    assert one[: len(passage("salt", "system", 50))] == other[: len(passage("salt", "system", 50))]
    assert one != other
    assert len(render((Segment("a", 1),), "salt", Calibration(1.0, 50.0)).split()) == 1  # never nothing
