from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.tokens import counter


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A tokenizer whose tokens are words, with the space before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokens_until_the_end_of_each_passage(words: Path) -> None:
    count = counter(words)
    assert count(["one", " two", " three four"]) == [1, 2, 4]
    assert count([]) == []


def test_a_token_that_begins_in_one_passage_counts_where_it_ends(words: Path) -> None:
    assert counter(words / "tokenizer.json")(["on", "e tw", "", "o"]) == [0, 1, 1, 2]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadTestError, match="is no tokenizer"):
        counter(tmp_path)
    with pytest.raises(LoadTestError, match=r"nowhere.*is no tokenizer"):
        counter(tmp_path / "nowhere")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(LoadTestError, match="pip install tokenizers"):
        counter(tmp_path)
