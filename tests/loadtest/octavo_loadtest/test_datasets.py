from __future__ import annotations

import json
import math
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
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


# ---- files that somebody else wrote --------------------------------------------------------------------------------


def written(folder: Path, text: str | bytes, name: str = "file.jsonl") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_prompt_may_name_the_columns_of_another_kind(tmp_path: Path) -> None:
    """One line of a file tells its kind, and by its form: what somebody asked about in it does not."""
    asked = 'what are "hash_ids": in ContextTokens?'
    (talk,) = read(written(tmp_path, json.dumps({"prompt": asked}) + "\n"), Shape())
    assert talk.asks[0].segments[0].text == asked
    chat = [{"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "x" * 8}]}]
    (talk,) = read(written(tmp_path, json.dumps(chat), "chats.json"), Shape())
    assert (talk.asks[0].segments[0].text, talk.asks[0].output_tokens) == (asked, 2)


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,48,7\n",
        '{"timestamp": 0, "input_length": 48, "output_length": 7, "hash_ids": [1]}',
        json.dumps([{"conversations": [{"from": "human", "value": "q" * 192}, {"from": "gpt", "value": "a" * 28}]}]),
        '{"input_length": 48, "output_length": 7}',
    ],
    ids=["azure", "mooncake", "sharegpt", "plain"],
)
def test_a_spreadsheets_mark_at_the_beginning_is_no_part_of_a_file(text: str, tmp_path: Path) -> None:
    (talk,) = read(written(tmp_path, b"\xef\xbb\xbf" + text.encode()), Shape())
    assert (sum(segment.tokens for segment in talk.asks[0].segments), talk.asks[0].output_tokens) == (48, 7)


def test_azures_stamps_of_both_years(tmp_path: Path) -> None:
    """2023: seven digits, no zone. 2024: a zone, and no fraction where it is 0."""
    stamps = ["2024-05-10 00:00:00+00:00", "2024-05-10 00:00:00.250000+00:00", "2024-05-10 00:00:01.5000000"]
    rows = "".join(f"{stamp},10,5\n" for stamp in stamps)
    file = written(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    assert [talk.at for talk in read(file, Shape())] == [0.0, 0.25, 1.5]


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "5", "null", '"text"', '{"prompt": null}', '{"prompt": ["a", "b"]}', '{"prompt": {"role": "user"}}',
        '{"prompt": "x", "max_tokens": "many"}', '{"prompt": "x", "max_tokens": Infinity}',
        '{"input_length": NaN}', '{"input_length": null}', '{"input_length": [3]}', '{"what": 1}', "{", "\x00",
        '{"prompt": "x", "at": "soon"}', '{"prompt": "x", "at": NaN}', '{"prompt": "x", "at": -Infinity}',
    ],
)  # fmt: skip
def test_a_bad_line_in_a_good_file_is_one_sentence(line: str, tmp_path: Path) -> None:
    file = written(tmp_path, f'{{"prompt": "fine"}}\n{line}\n')
    found = read(file, Shape())
    assert next(found).asks[0].segments[0].text == "fine"
    with pytest.raises(LoadTestError, match=r"file\.jsonl has a line that does not fit"):
        next(found)


@pytest.mark.parametrize(
    "row",
    [
        5, None, [], {}, {"conversations": None}, {"conversations": [{"from": "human"}, {"from": "gpt"}]},
        {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "x"}]},
        {"conversations": [{"from": "human", "value": 5}, {"from": "gpt", "value": "x"}]},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": None}]},
    ],
)  # fmt: skip
def test_a_bad_chat_is_one_sentence(row: Any, tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="does not fit"):
        list(read(written(tmp_path, json.dumps([row]), "chats.json"), Shape()))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "input_length", "output_length", "max_tokens", "at", "hash_ids", "timestamp",
                             "conversations", "from", "value"]), inner, max_size=4)
    ),
    max_leaves=8,
)  # fmt: skip


@given(rows=st.lists(JSON, max_size=3), whole=st.booleans(), start=st.sampled_from(["", "{}\n", '{"hash_ids": []}\n']))
@settings(max_examples=120)
def test_no_file_ends_in_anything_but_talks_or_a_sentence(
    rows: list[Any], whole: bool, start: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = json.dumps(rows) if whole else start + "\n".join(map(json.dumps, rows))
    with suppress(LoadTestError):
        for talk in read(written(tmp_path_factory.getbasetemp(), text), Shape(max_tokens=50)):
            assert talk.asks
            assert all(ask.segments and ask.output_tokens > 0 for ask in talk.asks)
            assert talk.at is None or math.isfinite(talk.at)


def test_what_no_block_is_named_for_is_sent_all_the_same(tmp_path: Path) -> None:
    """Its own words, for nothing says that anybody shares them."""
    rows = [{"timestamp": 0, "input_length": 1200, "output_length": 1, "hash_ids": ids} for ids in ([7], [], [7])]
    talks = list(read(written(tmp_path, "\n".join(map(json.dumps, rows))), Shape()))
    found = [[(segment.key, segment.tokens) for segment in talk.asks[0].segments] for talk in talks]
    assert found == [[("block7", 512), ("s0", 688)], [("s1", 1200)], [("block7", 512), ("s2", 688)]]


@settings(max_examples=40)
@given(stamps=st.lists(st.integers(0, 9_000), min_size=1, max_size=12).map(sorted))
def test_a_batch_is_over_before_the_next_begins(stamps: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of a trace with exact times, too: two of one millisecond are not 1.5 s apart, behind those that came later."""
    rows = [{"timestamp": stamp, "input_length": 9, "output_length": 1, "hash_ids": [0]} for stamp in stamps]
    file = written(tmp_path_factory.getbasetemp(), "\n".join(map(json.dumps, rows)))
    at = [talk.at or 0.0 for talk in read(file, Shape())]
    assert at == sorted(at)
    assert len(set(at)) == len(at)
    later = dict(pairwise(sorted(set(stamps))))
    for time, stamp in zip(at, stamps, strict=True):
        assert stamp / 1000 <= time < later.get(stamp, stamp + 3000) / 1000


@settings(max_examples=30)
@given(text=st.text("word ", min_size=200, max_size=400), limit=st.integers(2, 40))
def test_a_given_text_is_cut_with_its_plan(text: str, limit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A question longer than the context was planned shorter and sent whole, and every such request was refused."""
    file = written(tmp_path_factory.getbasetemp(), json.dumps({"prompt": text, "max_tokens": 6}))
    (talk,) = read(file, Shape(max_tokens=limit))
    (segment,) = talk.asks[0].segments
    assert segment.tokens + talk.asks[0].output_tokens == limit
    assert text.startswith(segment.text)
    assert len(segment.text) == pytest.approx(4 * segment.tokens, abs=3)
