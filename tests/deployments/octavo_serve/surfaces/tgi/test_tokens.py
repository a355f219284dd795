"""Texts of tokens, joined, are the sequence's text; the likeliest tokens are those of their ranks."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.request import Logprob
from octavo_serve.surfaces.tgi.tokens import TokenTexts, top_tokens


@pytest.mark.parametrize("text", ["Paris.", "🙂🙃 é", ""])
def test_the_texts_joined_are_the_text(tokenizer: Any, text: str) -> None:
    texts = TokenTexts(tokenizer, [])
    ids = tokenizer.encode(text, add_special_tokens=False)
    told = [texts.push(token_id, text if place == len(ids) - 1 else None) for place, token_id in enumerate(ids)]
    assert "".join(told) == text


def test_the_last_takes_what_is_left(tokenizer: Any) -> None:
    ids = tokenizer.encode("a🙂", add_special_tokens=False)
    texts = TokenTexts(tokenizer, [])
    assert texts.push(ids[0]) == "a"
    assert texts.push(ids[1], "a\ufffd") == "\ufffd"  # the text ends within a character
    assert texts.push(min(tokenizer.eos_token_ids), "a\ufffd") == "<|im_end|>"


def test_the_likeliest_are_ranked(tokenizer: Any) -> None:
    entries = {9: Logprob(-5.0, 40), 5: Logprob(-1.0, 2), 7: Logprob(-0.5, 1), 8: Logprob(float("-inf"), 3)}
    assert [token["id"] for token in top_tokens(tokenizer, entries, 2)] == [7, 5]
    assert top_tokens(tokenizer, entries, 3)[-1]["logprob"] == -9999.0
