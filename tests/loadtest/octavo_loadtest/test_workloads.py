from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
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
