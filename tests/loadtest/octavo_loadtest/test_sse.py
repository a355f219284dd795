from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.sse import events, parse


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
