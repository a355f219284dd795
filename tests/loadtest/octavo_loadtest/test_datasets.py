from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.datasets import read
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.workloads import Shape


def test_azure(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.4799600,110,27\n"
    )
    first, second = read(file, Shape(scale=0.5))
    assert (first.at, second.at) == (0.0, 0.5)
    assert (first.asks[0].segments[0].tokens, first.asks[0].output_tokens) == (2404, 5)


def test_mooncake_shares_blocks_and_spreads_batches(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 1024, "output_length": 7, "hash_ids": [0, 9]},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    first, second = read(file, Shape())
    assert [segment.tokens for segment in first.asks[0].segments] == [512, 512, 76]
    assert first.asks[0].segments[0] == second.asks[0].segments[0]
    assert (first.at, second.at) == (3.0, 4.5)


def test_sharegpt_keeps_the_words_and_the_answers_length(tmp_path: Path) -> None:
    turns = [("human", "Hello there"), ("gpt", "x" * 40), ("human", "And?"), ("gpt", "y" * 8), ("human", "left alone")]
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([{"conversations": [{"from": who, "value": text} for who, text in turns]}]))
    (talk,) = read(file, Shape())
    assert [ask.segments[0].text for ask in talk.asks] == ["Hello there", "And?"]
    assert [ask.output_tokens for ask in talk.asks] == [10, 2]


def test_plain_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Say hi", "max_tokens": 3}\n{"input_length": 50, "output_length": 4, "at": 2.5}\n')
    first, second = read(file, Shape())
    assert (first.asks[0].segments[0].text, first.asks[0].output_tokens, first.at) == ("Say hi", 3, None)
    assert (second.asks[0].segments[0].tokens, second.at) == (50, 2.5)


@pytest.mark.parametrize("content", ["hello", '{"what": 1}\n', "TIMESTAMP,ContextTokens\nnever,x\n"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "what.jsonl"
    file.write_text(content)
    with pytest.raises(LoadTestError):
        list(read(file, Shape()))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "what.jsonl"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LoadTestError, match="cannot be read"):
        list(read(file, Shape()))
    with pytest.raises(LoadTestError, match="cannot be read"):
        list(read(tmp_path / "nowhere.jsonl", Shape()))


@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    stamps=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_blocks_are_the_whole_prompt_and_a_batch_ends_before_the_next(
    lengths: list[int], stamps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    rows = [
        {"timestamp": 3000 * stamp, "input_length": length, "output_length": 1, "hash_ids": [*range(-(-length // 512))]}
        for length, stamp in zip(lengths, stamps, strict=False)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    talks = list(read(file, Shape()))
    assert [sum(segment.tokens for segment in talk.asks[0].segments) for talk in talks] == lengths
    for talk, row in zip(talks, rows, strict=True):
        assert 0 <= (talk.at or 0.0) - row["timestamp"] / 1000 < 3
    assert len({talk.at for talk in talks}) == len(talks)  # spread, not all at once


def test_a_block_that_no_token_is_left_for_is_no_segment(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(json.dumps({"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [4, 5, 6]}))
    (talk,) = read(file, Shape())
    assert [(segment.key, segment.tokens) for segment in talk.asks[0].segments] == [("block4", 512)]


def test_talks_without_a_question_are_left_out(tmp_path: Path) -> None:
    talks = [
        [("gpt", "first"), ("human", "and alone")],
        [("human", "  "), ("gpt", "to nothing")],
        [("system", "be kind"), ("user", "a question"), ("chatgpt", "x" * 12)],
    ]
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([{"conversations": [{"from": a, "value": b} for a, b in talk]} for talk in talks]))
    (talk,) = read(file, Shape())
    assert (talk.name, talk.asks[0].segments[0].text, talk.asks[0].output_tokens) == ("s2", "a question", 3)


def test_lines_without_a_length_of_the_answer(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "x"}\n\n{"prompt": "y", "output_length": 9}\n')
    assert [talk.asks[0].output_tokens for talk in read(file, Shape())] == [128, 9]
    assert [talk.asks[0].output_tokens for talk in read(file, Shape(scale=0.5))] == [64, 4]
