"""The routing policy as a table of cases, and the memory of prefixes under any sequence of operations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.routing.policy import Choice, RecentPrefixes, choose

CASES = [
    # matched blocks, in flight, max_imbalance -> expected
    ({"a": 0}, {}, 4, Choice(["a"], "load", 0, 0)),
    ({"a": 0, "b": 0}, {"a": 1}, 4, Choice(["b", "a"], "load", 0, 0)),
    ({"a": 3, "b": 0}, {"a": 4}, 4, Choice(["a", "b"], "prefix", 3, 4)),
    ({"a": 3, "b": 0}, {"a": 5}, 4, Choice(["b", "a"], "imbalance", 0, 0)),
    ({"a": 3, "b": 5, "c": 5}, {"b": 2, "c": 1}, 4, Choice(["c", "a", "b"], "prefix", 5, 1)),
    ({"a": 9, "b": 5, "c": 0}, {"a": 9, "b": 2}, 4, Choice(["b", "c", "a"], "imbalance", 5, 2)),
    ({"a": 1, "b": 1}, {"a": 7, "b": 7}, 0, Choice(["a", "b"], "prefix", 1, 7)),
]


@pytest.mark.parametrize(("matched", "in_flight", "max_imbalance", "expected"), CASES)
def test_choose(matched: dict[str, int], in_flight: dict[str, int], max_imbalance: int, expected: Choice) -> None:
    assert choose(matched, in_flight, max_imbalance) == expected


def test_no_shard_is_an_error() -> None:
    with pytest.raises(ValueError, match="no shard"):
        choose({}, {}, 4)


def test_only_an_unbroken_prefix_counts() -> None:
    prefixes = RecentPrefixes(100)
    prefixes.add([b"1", b"2", b"3"], "a")
    prefixes.add([b"1"], "b")
    prefixes.add([b"3"], "b")
    assert prefixes.matched([b"1", b"2", b"3", b"4"], ["a", "b", "c"]) == {"a": 3, "b": 1, "c": 0}


def test_a_full_memory_forgets_old_tails_first() -> None:
    prefixes = RecentPrefixes(4)
    prefixes.add([b"1", b"2", b"3"], "a")
    prefixes.add([b"x", b"y"], "a")
    assert prefixes.matched([b"1", b"2", b"3"], ["a"]) == {"a": 2}
    assert prefixes.matched([b"x", b"y"], ["a"]) == {"a": 2}


def test_a_shard_that_is_gone_is_forgotten() -> None:
    prefixes = RecentPrefixes(10)
    prefixes.add([b"1"], "a")
    prefixes.add([b"1"], "b")
    prefixes.forget("a")
    assert prefixes.matched([b"1"], ["a", "b"]) == {"a": 0, "b": 1}
    prefixes.forget("b")
    assert len(prefixes) == 0


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50), min_size=1),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50)),
    st.integers(0, 20),
)
def test_every_shard_is_ranked_once_and_the_first_is_never_too_busy(
    matched: dict[str, int], in_flight: dict[str, int], max_imbalance: int
) -> None:
    choice = choose(matched, in_flight, max_imbalance)
    assert sorted(choice.order) == sorted(matched)
    assert choice.load - min(in_flight.get(shard, 0) for shard in matched) <= max_imbalance


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.lists(st.integers(0, 20), max_size=12), st.sampled_from("abc")), max_size=30),
)
def test_the_memory_is_bounded(capacity: int, history: list[tuple[list[int], str]]) -> None:
    prefixes = RecentPrefixes(capacity)
    for chain, shard in history:
        prefixes.add([bytes([block]) for block in chain], shard)
        assert len(prefixes) <= capacity
