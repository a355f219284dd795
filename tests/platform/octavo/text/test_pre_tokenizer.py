from __future__ import annotations

import pytest

from octavo.errors import ModelError
from octavo.text.pre_tokenizer import SPLITTINGS, pre_tokenizer, splitting
from octavo.text.tokenizer import _alphabet_bytes


def words(name: str, text: str) -> list[str]:
    pieces = pre_tokenizer(splitting(name)).pre_tokenize_str(text)
    return [_alphabet_bytes(piece).decode() for piece, _ in pieces]


# the splits that tell the patterns apart, worked out by hand from the models' tokenizer.json
CASES = [
    ("gpt-2", "It's 1234 a\n\n 5", ["It", "'s", " 1234", " a", "\n\n", " 5"]),
    ("", "WE'VE", ["WE", "'", "VE"]),
    ("smollm", "a 1234\n\n5", ["a", " ", "1", "2", "3", "4", "\n\n", "5"]),
    ("llama-bpe", "WE'VE 12345 x\n\n y", ["WE", "'VE", " ", "123", "45", " x", "\n\n", " y"]),
    ("llama-bpe", "(hello)!\n", ["(hello", ")!\n"]),
    ("qwen2", "a 123", ["a", " ", "1", "2", "3"]),
    ("qwen2", "e\u0301x", ["e", "\u0301x"]),
    ("qwen35", "e\u0301x", ["e\u0301x"]),
    ("tekken", "HelloWorld's 12", ["Hello", "World", "'s", " ", "1", "2"]),
    ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
    ("deepseek-v3", "中文abc 1234 #tag", ["中文", "abc", " ", "123", "4", " #", "tag"]),
    ("deepseek-coder", "a+ 12\n日本", ["a", "+ ", "1", "2", "\n", "日本"]),
    ("bloom", "Hi, you (a) 12.5", ["Hi", ",", " you", " (", "a", ")", " 12", ".", "5"]),
    ("falcon", "a, b 1234", ["a", ",", " b", " ", "123", "4"]),
    ("seed-coder", "hi!\n 12", ["hi", "!", "\n", " ", "1", "2"]),
    ("deepseek-llm", "a, bc 12", ["a", ",", " bc", " ", "12"]),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_splits(name, text, expected):
    assert words(name, text) == expected


def test_no_name_stands_for_two_splittings():
    names = [name for entry in SPLITTINGS for name in entry.names]
    assert len(names) == len(set(names))


def test_unknown_name():
    with pytest.raises(ModelError, match="'nonesuch', which is not supported"):
        splitting("nonesuch")
