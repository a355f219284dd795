"""The server with known delays: what other tools' clients see of it, and what tests rely on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_loadtest import fake_server
from octavo_loadtest.fake_server import Behaviour, FakeServer, running

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 6}
STREAMED = ASKED | {"stream": True, "stream_options": {"include_usage": True}}
FAST = {"ttft": 0.0, "itl": 0.0}


def post(fake: FakeServer, body: Any, path: str = "/v1/chat/completions", name: str = "load-0") -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(fake.url + path, data, {"X-Request-ID": name, "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def events(answer: bytes) -> list[Any]:
    lines = [line[6:] for line in answer.decode().split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_as_openai_writes_it() -> None:
    with running(Behaviour(**FAST)) as fake:
        status, answer = post(fake, STREAMED)
    found = events(answer)
    assert status == 200
    assert {each["object"] for each in found} == {"chat.completion.chunk"}
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in found[:-1]) == " word" * 6
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-1] | {"id": ""} == {
        "id": "", "object": "chat.completion.chunk", "created": 0, "model": "fake", "choices": [],
        "usage": {"prompt_tokens": 13, "completion_tokens": 6},
    }  # fmt: skip


def test_a_completion_has_text_and_no_role() -> None:
    with running(Behaviour(**FAST)) as fake:
        _, answer = post(fake, {"prompt": "a b", "max_tokens": 2, "stream": True}, "/v1/completions")
    found = events(answer)
    assert {each["object"] for each in found} == {"text_completion"}
    assert [each["choices"][0]["text"] for each in found] == [" word", " word", ""]


@pytest.mark.parametrize(
    ("first", "coalesce", "sizes"),
    [(1, 1, [1] * 6), (3, 1, [3, 1, 1, 1]), (1, 4, [1, 4, 1]), (9, 1, [6]), (2, 2, [2, 2, 2])],
)
def test_chunks_of_the_sizes_asked_for(first: int, coalesce: int, sizes: list[int]) -> None:
    with running(Behaviour(**FAST, first=first, coalesce=coalesce)) as fake:
        _, answer = post(fake, STREAMED)
    said = [each["choices"][0]["delta"].get("content") for each in events(answer) if each["choices"]]
    assert [text.count("word") for text in said if text] == sizes


def test_what_it_did_is_logged() -> None:
    with running(Behaviour(ttft=0.02, itl=0.01)) as fake:
        post(fake, STREAMED, name="load-7")
        post(fake, STREAMED, name="")  # nobody's: not logged
    (served,) = fake.log
    assert (served.name, served.tokens, served.sent_tokens, served.fault) == ("load-7", 6, 6, None)
    waits = [(b - a) / 1e9 for a, b in zip([served.received, *served.wrote], served.wrote, strict=False)]
    assert waits[0] >= 0.02
    assert (served.wrote[-1] - served.received) / 1e9 >= 0.02 + 5 * 0.01


@pytest.mark.parametrize("fault", ["reject", "truncated", "error_event", "short", "empty"])
def test_faults_hit_every_kth_request(fault: str) -> None:
    with running(Behaviour(**FAST, **{f"every_{fault}": 2})) as fake:  # type: ignore[arg-type]
        fine = post(fake, STREAMED, name="load-0")
        assert (fine[0], fine[1].count(b" word")) == (200, 6)
        if fault in ("truncated", "error_event"):
            with pytest.raises(Exception, match="IncompleteRead"):
                post(fake, STREAMED, name="load-1")
        else:
            status, answer = post(fake, STREAMED, name="load-1")
            expected = {"reject": (429, 0), "short": (200, 3), "empty": (200, 0)}[fault]
            assert (status, answer.count(b" word")) == expected
        assert [served.fault for served in fake.log] == [None, fault]


def test_a_whole_answer_and_embeddings() -> None:
    with running(Behaviour(**FAST)) as fake:
        whole = json.loads(post(fake, ASKED)[1])
        vectors = json.loads(post(fake, {"input": "a b c"}, "/v1/embeddings")[1])
    assert whole["usage"] == {"prompt_tokens": 13, "completion_tokens": 1}
    assert vectors["data"][0]["embedding"] == [1.0, 0.0]
    assert vectors["usage"]["prompt_tokens"] == 3


def test_a_cache_of_blocks_of_sixteen() -> None:
    long = ASKED | {"messages": [{"role": "user", "content": [{"type": "text", "text": "w " * 30}]}]}
    with running(Behaviour(**FAST, cache=True)) as fake:
        cached = [json.loads(post(fake, long)[1])["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
    assert cached == [0, 32]


@pytest.mark.parametrize(
    ("behaviour", "body", "status"),
    [
        (Behaviour(key="k"), ASKED, 401),
        (Behaviour(loading=1), ASKED, 503),
        (Behaviour(strict=True), ASKED | {"ignore_eos": True}, 400),
        (Behaviour(), b"{", 400),
    ],
)
def test_what_it_refuses(behaviour: Behaviour, body: Any, status: int) -> None:
    with running(behaviour) as fake:
        assert post(fake, body)[0] == status


@pytest.mark.parametrize(
    "body",
    ["5", "null", "[]", '"text"', '{"messages": 5}', '{"messages": ["x"]}', '{"messages": [{"role": "user"}]}',
     '{"stream": true, "max_tokens": "many"}', '{"stream": true, "stream_options": 5}', "\xff"],
)  # fmt: skip
def test_a_body_that_makes_no_request_is_refused_and_the_connection_stays(body: str) -> None:
    with running(Behaviour(**FAST)) as fake:
        assert post(fake, body.encode("latin-1"))[0] == 400
        assert post(fake, ASKED)[0] == 200


def test_replicas_are_said_one_look_after_the_other_and_the_last_for_ever() -> None:
    with running(Behaviour(replicas=(2, None, 3))) as fake:
        said = [json.loads(get(fake, "/health")) for _ in range(5)]
    assert said[0] == {"status": "ok", "shards": {"fake": 2}}
    assert [each.get("shards", {}).get("fake") for each in said] == [2, None, 3, 3, 3]


def get(fake: FakeServer, path: str) -> bytes:
    with urllib.request.urlopen(fake.url + path, timeout=20) as answer:
        return bytes(answer.read())


def test_a_key_opens_everything_and_nothing_opens_without() -> None:
    with running(Behaviour(**FAST, key="k")) as fake:
        for path in ("/health", "/v1/models"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(fake, path)
        request = urllib.request.Request(fake.url + "/v1/models", headers={"Authorization": "Bearer k"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["data"][0]["id"] == "fake"


def test_usage_comes_with_each_chunk_at_the_end_or_not_at_all() -> None:
    """As it was asked for; a server may also know none."""
    each = STREAMED | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    bare = ASKED | {"stream": True}
    found = {}
    for usage in (True, False):
        with running(Behaviour(**FAST, usage=usage)) as fake:
            for name, body in (("each", each), ("end", STREAMED), ("bare", bare)):
                counts = [event.get("usage") for event in events(post(fake, body)[1])]
                found[name, usage] = [count["completion_tokens"] for count in counts if count]
    assert found == {
        ("each", True): [1, 2, 3, 4, 5, 6, 6], ("end", True): [6], ("bare", True): [],
        ("each", False): [], ("end", False): [], ("bare", False): [],
    }  # fmt: skip


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40))
def test_chunks_hold_all_tokens_and_none_is_empty(tokens: int, first: int, coalesce: int) -> None:
    sizes = list(fake_server._sizes(tokens, first, coalesce))
    assert sum(sizes) == tokens
    assert all(size > 0 for size in sizes)
    assert sizes[:1] == [min(first, tokens)][: len(sizes)]
    assert all(size == coalesce for size in sizes[1:-1])


@given(st.lists(st.text("ab", min_size=1, max_size=1), max_size=60), st.integers(0, 60))
@settings(max_examples=50)
def test_a_cache_has_the_whole_blocks_of_what_was_asked_before(words: list[str], shared: int) -> None:
    """Of a second prompt that begins with `shared` of the first one's words, and then differs."""
    fake = FakeServer(Behaviour(cache=True))
    assert fake._cached(words) == 0
    again = [*words[:shared], *["c"] * 20]
    assert fake._cached(again) == min(shared, len(words)) // 16 * 16
    assert fake._cached(again) == len(again) // 16 * 16


@pytest.mark.parametrize(
    ("name", "fault"),
    [("load-2", "reject"), ("load-5", "reject"), ("load-4", "short"), ("load-3", None), ("9", "short"), ("load", None),
     ("load-14", "reject"), ("", None), ("load--2", "reject")],
)  # fmt: skip
def test_the_first_fault_of_a_request_is_its_only_one(name: str, fault: str | None) -> None:
    """By the number at its name's end: every third is rejected, every fifth is short; 14 would be both."""
    fake = FakeServer(Behaviour(every_reject=3, every_short=5))
    assert fake._fault(fake_server.Served(name, 0)) == fault


def test_an_embedding_is_rejected_as_a_chat_is() -> None:
    with running(Behaviour(**FAST, every_reject=2)) as fake:
        codes = [post(fake, {"input": "a"}, "/v1/embeddings", f"load-{i}")[0] for i in range(4)]
        assert codes == [200, 429, 200, 429]
        assert [served.name for served in fake.log] == ["load-0", "load-2"]
