"""Masks of a step: made ahead by a thread or not, they are the same, and belong to one place in a text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from octavo.constraint import Grammar
from octavo.engine import masks
from octavo.engine.constrained import Constraint, RequestRules
from octavo.request import SamplingParams
from octavo.text.grammars.compiler import Compiler
from octavo.text.grammars.tokens import Vocabulary

PARAMS = SamplingParams(grammar=Grammar(source="start: /[a-f]{2,5}/"))


@pytest.fixture
def sequences(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Three in one grammar, at their beginning."""
    monkeypatch.setattr(masks, "AHEAD", 1)
    compiler = Compiler(Vocabulary(tiny_tokenizer, tiny_tokenizer.vocab_size))
    assert PARAMS.grammar is not None
    matcher = compiler.compile(PARAMS.grammar)
    rules = RequestRules.of(PARAMS, compiler, matcher, (), tiny_tokenizer.vocab_size)
    letters = [tiny_tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ab"]
    return [Sequence(Constraint(rules), letters) for _ in range(3)]


class Sequence(SimpleNamespace):
    """What masks look at."""

    def __init__(self, constraint: Constraint, letters: list[int]) -> None:
        super().__init__(constraint=constraint, letters=letters, token_ids=[], num_prompt=0, num_pending=0, ended=False)

    __hash__ = object.__hash__

    @property
    def num_known(self) -> int:
        return len(self.token_ids)

    def take(self, letter: int) -> None:
        self.token_ids.append(self.letters[letter])
        self.constraint.push(self.token_ids)


def filled(sequences: list[Any]) -> np.ndarray[Any, Any]:
    rows: Any = SimpleNamespace(masks=None, masked=None)
    masks.fill_masks(rows, list(enumerate(sequences)))
    assert rows.masked.tolist() == [*range(len(sequences))]
    found: np.ndarray[Any, Any] = rows.masks
    return found


def test_masks_that_are_made_ahead_are_those_that_are_not(sequences: list[Any]) -> None:
    for _ in range(4):
        plain = filled(sequences)
        masks.begin_masks(sequences)
        assert (filled(sequences[::-1]) == plain[::-1]).all()
        for letter, seq in enumerate(sequences[:2]):
            seq.take(letter)
    assert (plain[0] != plain[2]).any()


def test_a_mask_that_nobody_asked_for_is_not_that_of_the_next_token(sequences: list[Any]) -> None:
    for _ in range(3):
        masks.begin_masks(sequences[:2])
        for seq in sequences:
            seq.take(0)
    found = filled(sequences)
    assert (found == found[2]).all()


def test_a_copy_goes_its_own_way_while_a_thread_is_at_work(sequences: list[Any]) -> None:
    masks.begin_masks(sequences)
    other = Sequence(sequences[0].constraint.copy(), sequences[0].letters)
    for _ in range(4):
        other.take(1)
    assert (filled([other]) != filled(sequences)[:1]).any()


def test_those_that_ended_or_are_slow_are_not_made_ahead(sequences: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(masks, "_thread", lambda: SimpleNamespace(begin=begun.append))
    sequences[0].ended, sequences[1].constraint.suspect = True, 1
    masks.begin_masks(sequences)
    assert [len(making.masks) for making in begun] == [1]
    monkeypatch.setattr(masks, "AHEAD", 2)
    masks.begin_masks(sequences)
    assert len(begun) == 1
    assert filled(sequences[2:]).any()  # nobody has begun with it: it is made here
