"""What /predict is asked about."""

from __future__ import annotations

from octavo_serve.api.body import parse
from octavo_serve.api.texts import Cut, Pair
from octavo_serve.surfaces.tei.schemas import EmbedRequest, PredictRequest


def test_a_text_a_pair_and_lists() -> None:
    for inputs, texts, alone in (
        ("a", ["a"], True),
        (["a", "b"], [Pair("a", "b")], True),
        (["a"], ["a"], True),
        ([["a"], ["b", "c"]], ["a", Pair("b", "c")], False),
    ):
        read = parse(PredictRequest, {"inputs": inputs}).inputs
        assert (read.texts, read.alone) == (texts, alone)


def test_cuts() -> None:
    asked = parse(EmbedRequest, {"inputs": "a", "truncate": True, "truncation_direction": "Left"})
    assert asked.cut == Cut(most=-1, keeps_end=True)
    assert parse(EmbedRequest, {"inputs": "a"}).asking("embed", "embeddings", Cut()).param == "inputs"
