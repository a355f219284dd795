"""Texts become token ids that fit the model, or a sentence that says which does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from octavo.errors import BadRequest, PromptTooLong
from octavo.pooling import PoolingInfo
from octavo.text.tokenizer import longest_first
from octavo_serve.api.prompts import CHARACTERS_PER_TOKEN
from octavo_serve.api.texts import Cut, Encoder, Pair, longest
from octavo_serve.wire.messages import ModelInfo


class Letters:
    """One token a letter, from 10 on; 1 begins a text, 2 ends it, and stands twice between two."""

    vocab_size = 1000
    has_types = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [ord(char) for char in text]
        return [1, *ids, 2] if add_special_tokens else ids

    def is_special(self, token_id: int) -> bool:
        return token_id in (1, 2)

    def encode_pair(self, first: str, second: str, most: int | None = None) -> tuple[list[int], int]:
        if most is not None:
            one, other = longest_first(len(first), len(second), most - 4)
            first, second = first[:one], second[:other]
        ids = [*self.encode(first), 2]
        return [*ids, *self.encode(second)[1:]], len(ids)


INFO = ModelInfo("h", 12, 1000, 16, ("embed",), PoolingInfo(max_tokens=8))


def encoder(**fields: Any) -> Encoder:
    tokenizer: Any = Letters()
    return Encoder(**{"tokenizer": tokenizer, "info": INFO, "name": "input[{}]".format, "param": "input", **fields})


def ids_of(text: Any, **fields: Any) -> list[int]:
    (found,) = encoder(**fields).encode([text])
    return found.token_ids.tolist()


def letters(text: str) -> list[int]:
    return [ord(char) for char in text]


def test_a_text_and_token_ids() -> None:
    assert ids_of("abc") == [1, *letters("abc"), 2]
    assert ids_of("abc", add_special_tokens=False) == letters("abc")
    assert ids_of([5, 6]) == [5, 6]
    assert longest(INFO) == 8


@pytest.mark.parametrize(
    ("text", "cut", "ids"),
    [
        ("abcdefgh", Cut(most=-1), [1, *letters("abcdef"), 2]),
        ("abcdefgh", Cut(most=100), [1, *letters("abcdef"), 2]),
        ("abcdefgh", Cut(most=5), [1, *letters("abc"), 2]),
        ("abcdefgh", Cut(most=5, keeps_end=True), [1, *letters("fgh"), 2]),
        ("ab", Cut(most=5), [1, *letters("ab"), 2]),
        ("a" * 100_000, Cut(most=-1), [1, *letters("aaaaaa"), 2]),
        ([5, 6, 7], Cut(most=2), [5, 6]),
        ([5, 6, 7], Cut(most=2, keeps_end=True), [6, 7]),
    ],
)
def test_what_is_left_of_a_long_text(text: Any, cut: Cut, ids: list[int]) -> None:
    """As transformers cuts it: the special tokens stay."""
    assert ids_of(text, cut=cut) == ids


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("abcdefgh", r"input\[1\] has 10 tokens; this model reads at most 8 of a text: shorten it, or send trunc"),
        ("a" * 10_000, r"input\[1\] has 10002 tokens"),
        ("a" * 100_000, r"input\[1\] has more than 8 tokens"),
        ([5] * 9, r"input\[1\] has 9 tokens"),
    ],
)
def test_a_text_that_is_too_long_is_named(text: Any, sentence: str) -> None:
    with pytest.raises(PromptTooLong, match=sentence) as caught:
        encoder().encode(["a", text])
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("text", "cut", "sentence"),
    [
        ("", Cut(), r"input\[1\] must not be an empty text"),
        ([], Cut(), r"input\[1\] has no tokens"),
        ([1000], Cut(), "token id 1000 is not in the vocabulary"),
        ("abc", Cut(most=0), "of a text at least one token is read"),
    ],
)
def test_a_text_that_nothing_can_be_made_of(text: Any, cut: Cut, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        encoder(cut=cut).encode(["a", text])


def test_errors_without_a_field_get_the_texts_name() -> None:
    def refuse(text: str, add_special_tokens: bool = True) -> list[int]:
        raise BadRequest("the text is not valid Unicode")

    broken: Any = SimpleNamespace(encode=refuse)
    with pytest.raises(BadRequest, match=r"input\[0\]: the text is not valid Unicode") as caught:
        encoder(tokenizer=broken).encode(["a"])
    assert caught.value.param == "input"


def pair(first: str, second: str, **cut: Any) -> tuple[list[int], int | None]:
    (found,) = encoder(info=PAIRS, cut=Cut(**cut), name="documents[{}]".format).encode([Pair(first, second)])
    return found.token_ids.tolist(), found.second


PAIRS = ModelInfo("h", 12, 1000, 16, ("classify",), PoolingInfo(max_tokens=10))


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({"most_of_second": -1}, "cdef"),
        ({"most_of_second": 2}, "cd"),
        ({"most_of_second": 2, "keeps_end": True}, "hi"),
        ({"most": -1}, "cdef"),
        ({"most": 8}, "cd"),
        ({"most": 8, "most_of_second": 1}, "c"),
        ({"most": 8, "keeps_end": True}, "hi"),
    ],
)
def test_of_a_pair_the_second_text_is_cut(cut: Any, kept: str) -> None:
    assert pair("ab", "cdefghi", **cut) == ([1, *letters("ab"), 2, 2, *letters(kept), 2], 5)


def test_the_longer_text_is_cut_first() -> None:
    assert pair("abcdefgh", "ij", most=-1)[0] == [1, *letters("abcd"), 2, 2, *letters("ij"), 2]
    assert pair("abcdefgh", "ijklmnop", most=8)[0] == [1, *letters("ab"), 2, 2, *letters("ij"), 2]


def test_pairs_that_are_refused() -> None:
    assert pair("ab", "cdef") == ([1, *letters("ab"), 2, 2, *letters("cdef"), 2], 5)
    assert pair("ab", "") == ([1, *letters("ab"), 2, 2, 2], 5)
    for first, second, cut in (
        ("ab", "cdefg", {}),
        ("abcdefgh", "c", {"most_of_second": -1}),
        ("a" * 5000, "c", {"most": -1, "most_of_second": -1}),
        ("a", "c" * 5000, {}),
    ):
        with pytest.raises(PromptTooLong, match=r"documents\[0\] has (more than )?\d+ tokens; .* at most 10 of a text"):
            pair(first, second, **cut)


class Words(Letters):
    """Spaces are no tokens, as in WordPiece."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return super().encode(text.replace(" ", ""), add_special_tokens)


def test_what_is_no_token_does_not_push_a_text_out() -> None:
    words: Any = Words()
    cut, gap = Cut(most=3), " " * 3 * CHARACTERS_PER_TOKEN
    assert ids_of(gap + "abc", cut=cut, tokenizer=words) == [1, *letters("a"), 2]
    assert ids_of("abc" + gap, cut=Cut(most=3, keeps_end=True), tokenizer=words) == [1, *letters("c"), 2]
    (pair,) = encoder(cut=Cut(most_of_second=2), tokenizer=words).encode([Pair("a", gap * 3 + "bcd")])
    assert pair.token_ids.tolist() == [1, *letters("a"), 2, 2, *letters("bc"), 2]
    with pytest.raises(BadRequest, match=r"input\[0\] has less than 3 tokens in 6144 characters: shorten it"):
        ids_of(gap * 8 + "abc", cut=cut, tokenizer=words)
