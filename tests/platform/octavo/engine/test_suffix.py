"""The index beside looking at every place of the text."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.suffix import GRAM, LONGEST, SuffixIndex, common_end, continuation

TEXT = st.lists(st.integers(0, 3), max_size=60)


def longest(tokens: list[int], text: list[int]) -> int:
    """The longest match of the end of `text` at any place of `tokens`."""
    return max((common_end(tokens, end, text) for end in range(len(tokens) + 1)), default=0)


@given(TEXT, TEXT, st.integers(0, 60))
def test_what_is_found_is_there(tokens, text, near):
    index = SuffixIndex(tokens, 60)
    index.extend(len(tokens))
    place, length = index.find(text, near)
    if length:
        assert tokens[place - length : place] == text[-length:]
        assert GRAM <= length <= longest(tokens, text)
    else:
        assert place == 0
        assert longest(tokens, text) < GRAM


@given(TEXT, st.lists(st.integers(0, 60), max_size=8))
def test_it_may_be_indexed_in_any_pieces(tokens, cuts):
    whole, pieces = SuffixIndex(tokens, 60), SuffixIndex(tokens, 60)
    whole.extend(len(tokens))
    for cut in [*sorted(cuts), len(tokens)]:
        pieces.extend(min(cut, len(tokens)))
    assert pieces.size == whole.size == (len(tokens) if len(tokens) >= GRAM else 0)
    for end in range(len(tokens)):
        assert pieces.find(tokens[:end]) == whole.find(tokens[:end])


def test_no_more_is_indexed_than_is_allowed():
    tokens = [1, 2, 3, 4] * 100
    index = SuffixIndex(tokens, 50)
    index.extend(400)
    assert index.size == 50
    assert index.find([1, 2, 3, 4])[0] <= 50


def test_equal_matches_go_to_the_one_that_follows_where_the_text_was_read():
    tokens = [7, 1, 2, 3, 50, 8, 1, 2, 3, 51, 9, 1, 2, 3, 52]
    index = SuffixIndex(tokens, 60)
    index.extend(len(tokens))
    found = [index.find([0, 1, 2, 3], near)[0] for near in (0, 5, 10, 15)]
    assert [tokens[place] for place in found] == [50, 51, 52, 52]
    assert index.find([8, 1, 2, 3], 10) == (9, 4)


def test_a_text_that_repeats_itself_goes_on_doing_so():
    assert continuation([5, 6, 7], 1, 5, 3) == [6, 7, 6, 7, 6]
    assert continuation([5, 6, 7], 1, 5, 0) == [6, 7]
    assert common_end([3] * 90, 80, [3] * 90) == LONGEST


def test_a_token_takes_microseconds_whatever_the_text():
    for tokens in ([1] * 20_000, list(range(20_000)), [1, 2, 3, 4] * 5000):
        index = SuffixIndex(tokens, 20_000)
        begin = time.thread_time()
        index.extend(20_000)
        for _ in range(1000):
            index.find(tokens)
        assert time.thread_time() - begin < 1  # 10 to 60 ms
