from __future__ import annotations

import json
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.sse import content, events, parse, parse_embeddings


def body(*chunks: object) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def delta(**content: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": content}]}


WHOLE = (
    body(
        delta(role="assistant", content=""),
        delta(reasoning_content="hm"),
        delta(content="Hé"),
        delta(tool_calls=[{"index": 0}]),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    )
    + b": a comment\n\ndata: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=20))
def test_reads_may_split_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    reads = [(i, WHOLE[a:b]) for i, (a, b) in enumerate(pairwise(edges))]
    stream = parse(reads)
    assert [chunk.kind for chunk in stream.chunks] == ["empty", "reasoning", "text", "tool", "empty", "usage"]
    assert stream.text.startswith("hmHé")
    assert (stream.done, stream.finish_reason, stream.error) == (True, "stop", None)
    assert stream.usage == {"prompt_tokens": 3, "completion_tokens": 4}


def test_an_event_has_the_time_of_the_read_that_ended_it() -> None:
    one = body(delta(content="a"))
    reads = [(10, one[:5]), (20, one[5:] + one), (30, one[:-1]), (40, one[-1:])]
    assert [at for at, _ in events(reads)] == [20, 20, 40]


def test_carriage_returns() -> None:
    assert parse([(1, WHOLE.replace(b"\n", b"\r\n"))]).done


def test_continuous_usage_counts_tokens() -> None:
    stream = parse([(1, body({**delta(content="two words"), "usage": {"completion_tokens": 2}}))])
    assert stream.chunks[0].completion_tokens == 2
    assert stream.chunks[0].kind == "text"


def test_errors_in_a_stream() -> None:
    assert parse([(1, body({"error": {"message": "died"}}))]).error == "died"
    assert "not JSON" in (parse([(1, b"data: {oops\n\n")]).error or "")
    assert not parse([(1, body(delta(content="a")))]).done


def test_completions_have_text() -> None:
    stream = parse([(1, body({"choices": [{"text": "hi", "finish_reason": None}]}))])
    assert (stream.text, stream.chunks[0].kind) == ("hi", "text")


# ---- how other servers write it -----------------------------------------------------------------------------------

LLAMA = (
    body(
        delta(role="assistant", content=None),
        delta(content="Hi"),
        delta(content=" there"),
        {
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "timings": {"cache_n": 5, "prompt_n": 7, "predicted_n": 3, "prompt_ms": 1.5},
        },
    )
    + b"data: [DONE]\n\n"
)
PER_CHUNK = body(
    {**delta(role="assistant", content="Hi"), "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    {**delta(role="assistant", content=" you"), "usage": {"prompt_tokens": 3, "completion_tokens": 3}},
    {
        "choices": [{"delta": {"content": ""}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3},
    },
)
WHOLE_ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi there"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
).encode()


def test_llama_cpp_counts_in_its_own_words() -> None:
    stream = parse([(1, LLAMA)])
    assert stream.usage is not None
    assert (stream.usage["prompt_tokens"], stream.usage["completion_tokens"]) == (12, 3)
    assert stream.usage["prompt_tokens_details"] == {"cached_tokens": 5}
    assert (stream.text, stream.done, stream.finish_reason) == ("Hi there", True, "stop")
    assert [chunk.kind for chunk in stream.chunks] == ["empty", "text", "text", "empty"]


def test_openais_usage_goes_before_llama_cpps() -> None:
    both = {"usage": {"completion_tokens": 9}, "timings": {"predicted_n": 3}}
    assert parse([(1, body({"choices": [], **both}))]).usage == {"completion_tokens": 9}
    assert parse([(1, body({"choices": [], "timings": {"prompt_ms": 1.0}}))]).usage is None


def test_a_role_and_usage_in_each_chunk() -> None:
    stream = parse([(1, PER_CHUNK)])
    assert [chunk.completion_tokens for chunk in stream.chunks] == [1, 3, 3]
    assert [chunk.kind for chunk in stream.chunks] == ["text", "text", "empty"]
    assert stream.finish_reason == "length"


def test_usage_that_is_null_until_the_last_chunk() -> None:
    stream = parse(
        [(1, body({**delta(content="a"), "usage": None}, {"choices": [], "usage": {"completion_tokens": 1}}))]
    )
    assert [(chunk.kind, chunk.completion_tokens) for chunk in stream.chunks] == [("text", None), ("usage", 1)]


def test_no_usage_and_no_space_after_the_colon() -> None:
    stream = parse([(1, b'data:{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata:[DONE]\n\n')])
    assert (stream.text, stream.usage, stream.done) == ("a", None, True)


def test_done_needs_no_empty_line() -> None:
    assert parse([(1, body(delta(content="a"))), (2, b"data: [DONE]")]).done
    assert not parse([(1, body(delta(content="a"))), (2, b"data: [DO")]).done


def test_a_data_that_has_several_lines() -> None:
    event = b'event: message\nid: 7\ndata: {"choices": [{"delta":\ndata: {"content": "a"}}]}\n\n'
    assert parse([(1, event)]).text == "a"


def test_an_answer_that_is_no_stream_is_there_when_its_last_byte_is() -> None:
    stream = parse([(10, WHOLE_ANSWER[:40]), (90, WHOLE_ANSWER[40:])])
    assert [(chunk.at, chunk.kind) for chunk in stream.chunks] == [(90, "text")]
    assert (stream.text, stream.done, stream.finish_reason) == ("Hi there", True, "stop")
    assert stream.usage == {"prompt_tokens": 3, "completion_tokens": 2}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'"a"', b"<html>busy</html>", b": only a comment\n\n"])
def test_what_is_no_answer_has_none(data: bytes) -> None:
    stream = parse([(1, data)] if data else [])
    assert (stream.chunks, stream.done, stream.finish_reason) == ([], False, None)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {"message": "out of memory", "code": 500}}\n\n',
        b'data: {"error": "out of memory"}\n\n',
        b'event: error\ndata: {"message": "out of memory"}\n\n',
        b"event: error\ndata: out of memory\n\n",
        b'error: {"message": "out of memory"}\n\n',
        b'event: error\ndata: {"error": {"message": "out of memory"}}\n\n',
        b'data: "out of memory"\n\n',
        b'{"error": {"message": "out of memory"}}',
    ],
)
def test_an_error_under_any_name(event: bytes) -> None:
    stream = parse([(1, event)])
    assert "out of memory" in (stream.error or "")
    assert [chunk.kind for chunk in stream.chunks] == ["error"]


def test_an_error_that_is_null_is_none() -> None:
    assert parse([(1, body({**delta(content="a"), "error": None}))]).error is None


@pytest.mark.parametrize("reason", ["abort", "error", "cancelled"])
def test_a_server_that_gives_up_has_failed(reason: str) -> None:
    stream = parse([(1, body({"choices": [{"delta": {}, "finish_reason": reason}]}))])
    assert stream.error == f"finish_reason {reason}"


@pytest.mark.parametrize(
    ("found", "kind", "text"),
    [
        ({"content": "a"}, "text", "a"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, 3]}, "text", "ab"),
        ({"refusal": "no"}, "text", "no"),
        ({"reasoning_content": "hm"}, "reasoning", "hm"),
        ({"reasoning": "hm"}, "reasoning", "hm"),
        ({"tool_calls": [{"index": 0}]}, "tool", '[{"index": 0}]'),
        ({"function_call": {"name": "f"}}, "tool", '{"name": "f"}'),
        ({"role": "assistant"}, "empty", ""),
        ({"content": "", "tool_calls": []}, "empty", ""),
        ({}, "empty", ""),
    ],
)
def test_kinds_of_content(found: dict[str, object], kind: str, text: str) -> None:
    assert content({"delta": found}) == (kind, text)
    assert content({"message": found}) == (kind, text)
    assert content({"delta": None, "text": "whole"}) == ("text", "whole")


def test_choices_together_are_one_chunk_with_all_of_their_text() -> None:
    both = {"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "a"}}]}
    stream = parse([(1, body(both, {"choices": [{"delta": {"content": "b"}}, {"delta": {"content": "c"}}]}))])
    assert [(chunk.kind, chunk.characters) for chunk in stream.chunks] == [("text", 1), ("text", 2)]


# ---- counting what the server does not ----------------------------------------------------------------------------


def letters(passages: list[str]) -> list[int]:
    return list(accumulate(map(len, passages)))


def test_a_tokenizer_counts_where_the_server_does_not() -> None:
    stream = parse([(1, body(delta(role="assistant"), delta(content="ab"), delta(content="cde")))])
    assert stream.counted(letters) == 5
    assert [chunk.completion_tokens for chunk in stream.chunks] == [0, 2, 5]


def test_a_servers_own_counts_are_kept() -> None:
    stream = parse([(1, PER_CHUNK)])
    assert stream.counted(letters) == len("Hi you")
    assert [chunk.completion_tokens for chunk in stream.chunks] == [1, 3, 3]
    assert parse([]).counted(letters) == 0


# ---- embeddings ---------------------------------------------------------------------------------------------------


def test_an_embedding_is_whole() -> None:
    answer = json.dumps({"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 4}}).encode()
    stream = parse_embeddings([(1, answer[:9]), (2, answer[9:])])
    assert (stream.done, stream.error, stream.usage) == (True, None, {"prompt_tokens": 4})


@pytest.mark.parametrize("answer", [b"", b"{", b"{}", b'{"data": []}', b'{"data": [{"embedding": []}]}', b"[]"])
def test_an_answer_without_vectors_is_an_error(answer: bytes) -> None:
    stream = parse_embeddings([(1, answer)])
    assert stream.error or not stream.done
