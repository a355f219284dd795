from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_loadtest import workloads
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.laws import draw
from octavo_loadtest.stats import ks_critical, ks_distance
from octavo_loadtest.text import Segment
from octavo_loadtest.workloads import Ask, Shape, Talk

LEVELS = np.array(workloads.table()["levels"])
FULL = Shape()


def talks(name: str, count: int, seed: int = 5, shape: Shape = FULL, rate: float = 10.0) -> list[Talk]:
    return list(islice(workloads.generate(name, np.random.default_rng(seed), shape, rate), count))


def table_sample(law: dict[str, Any], count: int) -> workloads.Floats:
    """A sample of the table itself: its quantiles at equal steps, or what its law gives for another seed."""
    if "quantiles" in law:
        return np.interp((np.arange(count) + 0.5) / count, LEVELS, np.array(law["quantiles"], dtype=float))
    return draw(law, LEVELS, count, np.random.default_rng(99))


def last_tokens(ask: Ask) -> int:
    return ask.segments[-1].tokens


def agrees(values: list[int], law: dict[str, Any]) -> bool:
    reference = table_sample(law, 20_000).round()
    return ks_distance(np.array(values, dtype=float), reference) < ks_critical(len(values), 20_000, alpha=0.001)


PLAIN = [name for name, preset in workloads.presets().items() if not {"turns", "extends", "clients"} & set(preset)]


@pytest.mark.parametrize("name", PLAIN)
def test_single_turn_presets_follow_their_tables(name: str) -> None:
    preset = workloads.preset(name)
    asks = [talk.asks[0] for talk in talks(name, 1500)]
    assert agrees([last_tokens(ask) for ask in asks], preset["first"])
    assert agrees([ask.output_tokens for ask in asks], preset["output"])


def test_conversations_follow_their_tables() -> None:
    preset = workloads.preset("chat-sharegpt")
    found = talks("chat-sharegpt", 1500)
    later = [ask for talk in found for ask in talk.asks[1:]]
    assert agrees([last_tokens(talk.asks[0]) for talk in found], preset["first"])
    assert agrees([last_tokens(ask) for ask in later[:1500]], preset["later"])
    assert agrees([talk.asks[0].output_tokens for talk in found], preset["output"])
    # the table of turns is of whole numbers: compare where it is flat
    turns = np.array([len(talk.asks) for talk in found])
    assert turns.mean() == pytest.approx(5.4, rel=0.12)
    assert (turns == 1).mean() == pytest.approx(0.204, abs=0.05)
    thinks = [ask.think for ask in later]
    assert 5 <= min(thinks) <= max(thinks) <= 300


def test_tree_has_the_tables_lengths_and_shares_prefixes() -> None:
    preset = workloads.preset("mooncake-chat")
    found = [talk.asks[0] for talk in talks("mooncake-chat", 1500)]
    lengths = [sum(segment.tokens for segment in ask.segments) for ask in found]
    assert agrees(lengths, preset["first"])
    assert all(ask.segments[0].key == "system" for ask in found)
    extending = sum(len(ask.segments) > 2 for ask in found) / len(found)
    assert 0.2 < extending <= 0.33  # a third, less those that are shorter than every earlier prompt


def test_clients_are_unequal_and_keep_the_rate() -> None:
    found = talks("clients-zipf", 6000)
    at = np.array([talk.at for talk in found])
    assert (np.diff(at) >= 0).all()
    assert len(at) / at[-1] == pytest.approx(10.0, rel=0.3)
    names = [talk.asks[0].segments[0].key for talk in found]
    top = max(map(names.count, set(names))) / len(names)
    shares = np.arange(1, 65) ** -1.37
    assert top == pytest.approx(1 / shares.sum(), rel=0.4)


def test_the_same_seed_gives_the_same_load() -> None:
    for name in workloads.presets():
        assert talks(name, 20, seed=7) == talks(name, 20, seed=7)
        assert name.endswith(("heavy", "balanced")) or talks(name, 20, seed=7) != talks(name, 20, seed=8)


def test_scale_shrinks_every_length() -> None:
    full, small = talks("azure-conv", 200), talks("azure-conv", 200, shape=Shape(scale=0.1))
    for a, b in zip(full, small, strict=True):
        assert b.asks[0].output_tokens == pytest.approx(a.asks[0].output_tokens * 0.1, abs=1)


asks = st.builds(
    Ask,
    st.lists(st.builds(Segment, st.text("ab", min_size=1), st.integers(1, 500)), min_size=1, max_size=3).map(tuple),
    st.integers(1, 500),
)


@given(st.lists(asks, min_size=1, max_size=5), st.integers(2, 600))
def test_fit_keeps_every_session_within_the_context(turns: list[Ask], limit: int) -> None:
    kept = workloads.fit(Talk("s", tuple(turns)), limit)
    total = sum(sum(segment.tokens for segment in ask.segments) + ask.output_tokens for ask in kept.asks)
    assert 1 <= len(kept.asks) <= len(turns)
    assert total <= limit
    assert all(ask.segments and ask.output_tokens > 0 for ask in kept.asks)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(LoadTestError, match="balanced"):
        workloads.preset("nothing")


def test_every_preset_says_where_it_comes_from() -> None:
    assert all({"about", "source", "arrivals", "output"} <= set(preset) for preset in workloads.presets().values())


# ---- what every generator keeps to -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(workloads.presets()) - {"mooncake-chat"}))
def test_what_a_session_ends_with_is_its_own(name: str) -> None:
    """A prefix or a system prompt may be many sessions'. (In a tree a prompt may be a part of the system block.)"""
    found = talks(name, 60, shape=Shape(scale=0.2))
    assert [talk.name for talk in found] == [f"s{i}" for i in range(60)]
    own = [ask.segments[-1].key for talk in found for ask in talk.asks]
    assert len(set(own)) == len(own)
    assert [key.split(".")[0] for key in own] == [talk.name for talk in found for _ in talk.asks]
    assert all(segment.tokens >= 1 for talk in found for ask in talk.asks for segment in ask.segments)


@pytest.mark.parametrize("name", sorted(workloads.presets()))
def test_a_longer_plan_begins_with_the_shorter_one(name: str) -> None:
    """A generator looks at nothing but its seed: neither at how many are taken, nor at another that runs beside it."""
    whole = talks(name, 40, seed=3)
    assert talks(name, 11, seed=3) == whole[:11]
    one, two = (workloads.generate(name, np.random.default_rng(3), FULL, 10.0) for _ in range(2))
    mixed = [next(each) for _ in range(11) for each in (one, two)]
    assert mixed[::2] == mixed[1::2] == whole[:11]


@pytest.mark.parametrize("name", sorted(workloads.presets()))
@pytest.mark.parametrize("limit", [2, 33, 700])
def test_no_preset_leaves_its_context(name: str, limit: int) -> None:
    for talk in talks(name, 25, shape=Shape(max_tokens=limit)):
        used = 0
        for ask in talk.asks:
            used += sum(segment.tokens for segment in ask.segments) + ask.output_tokens
            assert ask.segments
            assert ask.output_tokens >= 1
        assert used <= limit


def test_thinking_is_scaled_and_comes_before_no_first_turn() -> None:
    plain, twice, never = (talks("chat-sharegpt", 40, shape=Shape(think=factor)) for factor in (1.0, 2.0, 0.0))
    for a, b, c in zip(plain, twice, never, strict=True):
        assert a.asks[0].think == 0
        assert [ask.think for ask in b.asks] == [2 * ask.think for ask in a.asks]
        assert {ask.think for ask in c.asks} == {0.0}
        assert [ask.segments for ask in a.asks] == [ask.segments for ask in b.asks]


def test_a_law_of_prefixes() -> None:
    """Zipf with exponent 1 over four prefixes: shares of 12, 6, 4 and 3 of 25; without an exponent a fourth each."""
    numbers = {"prefixes": [10, 20, 30, 40], "zipf": 1.0, "first": {"constant": 5}, "output": {"constant": 2}}
    for law, shares in ((numbers, [12, 6, 4, 3]), ({**numbers, "zipf": 0.0}, [25 / 4] * 4)):
        made = islice(workloads._shared(law, np.random.default_rng(1), FULL, 1.0), 4000)
        prefixes = [talk.asks[0].segments[0] for talk in made]
        for i, share in enumerate(shares):
            assert sum(each.key == f"prefix{i}" for each in prefixes) / 4000 == pytest.approx(share / 25, abs=0.03)
        assert {each.key: each.tokens for each in prefixes} == {f"prefix{i}": 10 * (i + 1) for i in range(4)}


def test_a_tree_grows_on_the_longest_prompt_that_fits() -> None:
    a, b, c = ((Segment("a", 10),), (Segment("a", 10), Segment("b", 20)), (Segment("c", 31),))
    assert workloads._closest([a, b, c], 31) == c
    assert workloads._closest([a, b, c], 30) == b
    assert workloads._closest([a, b, c], 29) == a
    assert workloads._closest([a, b, c], 9) is None


def test_a_tree_of_which_every_prompt_extends_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an extension of 7 on prompts of 20, 27, 34 each is one more level of the same branch."""
    numbers = {"system": 6, "extends": 1.0, "first": {"lengths": [20, 27, 34, 5, 3]}, "extension": {"constant": 7},
               "output": {"constant": 1}}  # fmt: skip
    drawn = workloads._drawn
    monkeypatch.setattr(
        workloads, "_drawn", lambda law, rng: iter(law["lengths"]) if "lengths" in law else drawn(law, rng)
    )
    found = [t.asks[0].segments for t in islice(workloads._tree(numbers, np.random.default_rng(0), FULL, 1.0), 5)]
    assert [[(s.key, s.tokens) for s in segments] for segments in found] == [
        [("system", 6), ("s0", 14)],
        [("system", 6), ("s0", 14), ("s1", 7)],
        [("system", 6), ("s0", 14), ("s1", 7), ("s2", 7)],
        [("system", 5)],  # shorter than the system block: a part of it
        [("system", 3)],
    ]


@given(st.floats(0.5, 20), st.floats(0.3, 5))
@settings(max_examples=20)
def test_a_clients_times_rise_and_keep_its_rate(rate: float, cv: float) -> None:
    """4,000 gaps: their mean is within five standard errors, cv / sqrt(4000) each; beyond a block of 64 too."""
    at = np.array(list(islice(workloads._renewals(rate, cv, np.random.default_rng(0)), 4000)))
    assert (np.diff(at) >= 0).all()
    assert np.diff(at).mean() * rate == pytest.approx(1, abs=5 * cv / 4000**0.5)
    assert np.diff(at).std() * rate == pytest.approx(cv, rel=0.35)
    assert at[0] >= 0
