"""What fits and what does not, without a cluster."""

from __future__ import annotations

import pytest

from octavo_serve.config.placement import Group, Strategy, most_shards, unplaceable

GPU = {"CPU": 1.0, "GPU": 1.0}
NODES = [{"CPU": 8.0, "GPU": 4.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0}]


@pytest.mark.parametrize(("ranks", "strategy", "most"), [
    (1, "STRICT_PACK", 7),
    (2, "STRICT_PACK", 3),  # two on the first node, one on the second
    (4, "STRICT_PACK", 1),
    (5, "STRICT_PACK", 0),
    (5, "PACK", 1),
    (2, "SPREAD", 3),
    (2, "STRICT_SPREAD", 3),
    (3, "STRICT_SPREAD", 0),
])  # fmt: skip
def test_how_many_shards_fit(ranks: int, strategy: Strategy, most: int) -> None:
    group = Group(GPU, ranks, strategy)
    assert unplaceable(group, most, NODES) is None
    assert unplaceable(group, most + 1, NODES) is not None


def test_the_sentence_says_what_was_asked_and_what_there_is() -> None:
    assert unplaceable(Group(GPU, 2, "STRICT_PACK"), 4, NODES) == (
        "the cluster has room for 3 of its 4 shards: asked for 4 x 2 ranks of 1 CPU + 1 GPU each on one node; "
        "the nodes have 8 CPU + 4 GPU, 8 CPU + 3 GPU, 8 CPU + 0 GPU"
    )


@pytest.mark.parametrize(("kept", "most"), [
    ([], 7),
    ([Group(GPU, 1, "STRICT_PACK")], 6),
    ([Group(GPU, 3, "STRICT_PACK")], 4),  # on the second node, which has just the three
    ([Group(GPU, 2, "STRICT_PACK"), Group(GPU, 3, "STRICT_PACK")], 2),  # the larger one first
    ([Group(GPU, 2, "STRICT_SPREAD")], 5),
    ([Group(GPU, 3, "STRICT_SPREAD")], 7),  # fits nowhere, so it takes nothing away
    ([Group(GPU, 6, "SPREAD")], 1),
    ([Group({"CPU": 7.5}, 3, "PACK")], 0),
    ([Group({}, 9, "PACK")], 7),
])  # fmt: skip
def test_what_others_are_to_keep_is_left_alone(kept: list[Group], most: int) -> None:
    assert most_shards(Group(GPU, 1, "STRICT_PACK"), kept, NODES) == most


def test_two_ranks_beside_one_that_goes_where_it_is_in_the_way_least() -> None:
    """Of 4 and 3 GPUs, one on the second node leaves three pairs; on the first it would leave two."""
    assert most_shards(Group(GPU, 2, "STRICT_PACK"), [Group(GPU, 1, "STRICT_PACK")], NODES) == 3


def test_fractions_add_up_as_ray_adds_them() -> None:
    assert unplaceable(Group({"CPU": 0.1}, 3, "STRICT_PACK"), 1, [{"CPU": 0.3}]) is None
    assert unplaceable(Group({"CPU": 0.1}, 3, "STRICT_PACK"), 1, [{"CPU": 0.29}]) is not None


def test_no_nodes() -> None:
    assert unplaceable(Group(GPU, 2, "PACK"), 1, []) is not None
