"""Patterns match as Python's `re` does, say when more text could change the answer, and take linear time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.responses.patterns import (
    PENDING,
    Finder,
    Match,
    Pattern,
    PatternError,
    literals,
    parse,
    split_at_group,
)

PATTERNS = [
    r"ab", r"a(?P<x>b+)c", r"a(?P<x>.*?)c", r"a(?P<x>.*)c", r"a[^c]*c?", r"a(?:b|bc)(?P<x>c?)", r"(?:a|b)c*?a",
    r"a\s*(?=b)", r"a{2,3}b?", r"a(?:bc)?\s+b", r"[ab]{1,2}?c", r"a(?=b|\Z)", r"(?P<x>a+?)(?P<y>a*)b", r"a\Z|b",
]  # fmt: skip
TEXTS = st.text("abc \n", max_size=12)


@given(st.sampled_from(PATTERNS), TEXTS)
def test_matches_are_those_of_re(source: str, text: str) -> None:
    expected = re.compile(source, re.DOTALL).match(text)
    found = Pattern(parse(source), {}).match(text, 0, final=True)
    if expected is None:
        assert found is None
    else:
        groups = {name: value for name, value in expected.groupdict().items() if value is not None}
        assert found == Match(0, expected.end(), expected[0], groups)


@given(st.sampled_from(PATTERNS), TEXTS, TEXTS)
def test_an_answer_that_is_not_pending_stays(source: str, text: str, more: str) -> None:
    pattern = Pattern(parse(source), {})
    if (early := pattern.match(text, 0)) != PENDING:
        assert pattern.match(text + more, 0, final=True) == early


@given(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3), TEXTS)
def test_the_first_delimiter_of_several(sources: list[str], text: str) -> None:
    found = Finder([(source, Pattern(parse(source), {})) for source in sources]).find(text, 0, final=True)
    starts = [match.start() for source in sources if (match := re.compile(source, re.DOTALL).search(text))]
    assert (found[1].start if isinstance(found, tuple) else None) == min(starts, default=None)


def test_a_literal_is_pending_while_it_may_still_come() -> None:
    finder = Finder([("call", Pattern(literals(["<tool_call>", "<tool>"]), {}))])
    assert finder.find("text <to", 0) == len("text ")
    assert finder.find("text <to", 0, final=True) == len("text <to")
    assert finder.find("text <ta", 0) == len("text <ta")
    found = finder.find("<tool> <tool_call>", 0)
    assert isinstance(found, tuple)
    assert found[1].text == "<tool>"


def test_a_token_is_matched_by_its_mark_alone() -> None:
    names = {"\ud800": "<|call|>"}
    pattern = Pattern(parse(r"<\|call\|>(?P<name>[^<]+)(?P<rest>.*?)!"), names)
    found = pattern.match("\ud800look\ud800!", 0)
    assert isinstance(found, Match)
    assert found.groups == {"name": "look", "rest": "<|call|>"}  # a class that has no "<" has no such token
    assert pattern.match("<|call|>look!", 0) is None


def test_where_a_message_begins() -> None:
    finder = Finder([("", Pattern(parse(r"(?:^\s*|;)(?=\{)"), {}))])
    assert finder.find(" {", 0, start=True) == ("", Match(0, 1, " ", {}))
    assert finder.find(" {", 0) == 2
    assert finder.find("x;{", 0, start=True) == ("", Match(1, 2, ";", {}))


def test_a_delimiter_has_an_end() -> None:
    pattern = Pattern(parse(r"<(?P<x>[^>]*)>"), {})
    assert pattern.match("<" + "a" * 200, 0) == PENDING
    assert pattern.match("<" + "a" * 300, 0) is None
    assert pattern.match("<" + "a" * 300 + ">", 0, final=True) is None


def test_no_pattern_is_exponential() -> None:
    text = "a" * 250
    steps = [0]

    class Counted(Pattern):
        def _takes(self, op: tuple[object, ...], char: str) -> bool:
            steps[0] += 1
            return super()._takes(op, char)

    assert Counted(parse(r"(?:a*)*(?:a|a)*b"), {}).match(text, 0, final=True) is None
    assert steps[0] <= len(text) * 20


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (r"(a", "not closed"), (r"a)", "unbalanced"), (r"*a", "nothing to repeat"), (r"a(?!b)", "not understood"),
        (r"(?=a)b", "must come last"), (r".a", "any character"), (r"a*", "empty"), (r"[^a]b", "any character"),
        (r"(?:a{99}){99}", "too large"), (r"\1", "not understood"), (r"[b-a]", "bad character range"),
        ("a\\", "too soon"),
        ("(" * 30 + "a" + ")" * 30, "too deeply"), (r"a{3,2}", "less"), (r"^*a", "cannot be repeated"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(source: str, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        Pattern(parse(source), {})


def test_a_tag_is_what_is_before_and_after_its_value() -> None:
    before, after = split_at_group(parse(r"<a>(?P<value>.*?)</a>"), "value")
    assert (Pattern(before, {}).literal, Pattern(after, {}).literal) == ("<a>", "</a>")
    with pytest.raises(PatternError, match="no group"):
        split_at_group(parse("<a>"), "value")


@pytest.mark.parametrize("source", ["a(){999}{999}{999}", "a(?:(?:){900}){900}{900}", "a(?:b{999}){999}"])
def test_what_repeats_without_end_is_refused_at_once(source: str) -> None:
    with pytest.raises(PatternError, match="too large"):
        Pattern(parse(source), {})
