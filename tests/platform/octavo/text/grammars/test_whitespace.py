from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from octavo.text.grammars.whitespace import MOST, WhitespaceRun

VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a "\\\n\t{}')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from('k "\\')), inner, max_size=3),
    max_leaves=6,
)


def plain(text: bytes) -> int:
    """White space at the end of a JSON text, unless that is in a string."""
    in_string = escaped = False
    for byte in text:
        if escaped:
            escaped = False
        elif byte == ord('"'):
            in_string = not in_string
        elif byte == ord("\\"):
            escaped = in_string
    return 0 if in_string else len(text) - len(text.rstrip(b" \t\r\n"))


@given(VALUES, st.integers(0, 20), st.lists(st.integers(0, 400), max_size=8))
def test_it_counts_outside_of_strings_however_the_text_is_cut(value, indent, cuts):
    text = json.dumps(value, indent=indent).encode()
    for end in {len(text), *(cut % (len(text) + 1) for cut in cuts)}:
        follower, before = WhitespaceRun(), 0
        for cut in sorted({*(c for c in cuts if c < end), end}):
            follower.push(text[before:cut])
            before = cut
        assert follower.run == plain(text[:end])


def test_sixteen_bytes_are_too_long():
    follower = WhitespaceRun()
    follower.push(b'{"a":' + b"\n" * (MOST - 1))
    assert not follower.is_too_long
    copy = follower.copy()
    copy.push(b" ")
    assert copy.is_too_long
    assert not follower.is_too_long
    copy.push(b'"')
    assert not copy.is_too_long


def test_a_thought_with_one_quote_does_not_turn_strings_inside_out():
    follower = WhitespaceRun()
    follower.push(b'it is 5" long.</think>\n{"a":' + b" " * MOST)
    assert follower.is_too_long
    follower.push(b'"' + b" " * MOST)
    assert not follower.is_too_long
