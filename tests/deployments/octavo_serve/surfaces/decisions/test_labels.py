"""Labels of a real tokenizer, and of tokenizers that lack some."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo.text.tokenizer import Tokenizer
from octavo_serve.surfaces.decisions.labels import Alphabet, alphabet_of

ENDING = "<|im_end|>\n<|im_start|>assistant\n"


def test_a_real_tokenizer(tokenizer: Tokenizer) -> None:
    alphabet = Alphabet(tokenizer, ENDING)
    assert [tokenizer.decode([i]) for i in alphabet.predicate().groups] == ["Yes", "No"]
    assert [tokenizer.decode([i]) for i in alphabet.score(10).groups] == list("0123456789")
    assert alphabet.score(11).texts == tuple("ABCDEFGHIJK")
    choice = alphabet.choice(26)
    assert (choice.texts[-1], len(choice.groups), choice.members, choice.forks) == ("Z", 26, (), 1)
    many = alphabet.choice(27)
    assert (many.texts[:2], many.texts[-1], many.forks) == (("A0", "A1"), "C6", 4)
    assert [len(many.members_of(group)) for group in range(3)] == [10, 10, 7]
    assert [len(alphabet.choice(255).members_of(group)) for group in (0, 25)] == [10, 5]
    assert alphabet_of(tokenizer, ENDING) is alphabet_of(tokenizer, ENDING)


def test_a_space_belongs_to_the_label_where_the_ending_wants_one(tokenizer: Tokenizer) -> None:
    bare = Alphabet(_Words(), "assistant:")
    assert bare.predicate().texts == ("Yes", "No")
    assert all(_Words.known[i].startswith(" ") for i in bare.choice(3).groups)


class _Words:
    """Knows letters after a space alone, and few other words."""

    known = ("assistant:", *(f" {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"), " Yes", " No", " ")

    def __init__(self, *missing: str) -> None:
        self._missing = missing

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        while text:
            found = [w for w in self.known if text.startswith(w) and w not in self._missing]
            if not found:
                ids, text = [*ids, 1000, 1000 + ord(text[0])], text[1:]  # as many tokenizers write rare characters
                continue
            word = max(found, key=len)
            ids, text = [*ids, self.known.index(word)], text[len(word) :]
        return ids


def test_words_or_digits_may_be_missing() -> None:
    alphabet: Any = Alphabet(_Words(" No"), "assistant:")
    assert alphabet.predicate().texts == ("A", "B")
    assert alphabet.score(3).texts == ("A", "B", "C")


def test_a_tokenizer_without_letters_is_refused() -> None:
    with pytest.raises(BadRequest, match="no tokens for the letters"):
        Alphabet(_Words(" Q"), "assistant:")


def test_too_many_options(tokenizer: Tokenizer) -> None:
    with pytest.raises(BadRequest, match="at most 260 options"):
        Alphabet(tokenizer, ENDING).choice(261)
