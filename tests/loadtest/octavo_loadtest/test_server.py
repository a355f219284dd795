"""What is asked of a server outside a measurement."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace

import pytest

from octavo_loadtest import server
from octavo_loadtest.client import Answer, Client
from octavo_loadtest.errors import LoadTestError, Refused
from octavo_loadtest.fake_server import Behaviour, running
from octavo_loadtest.job import Session, Target, Turn
from octavo_loadtest.server import ReplicaWatch, find_model, prepare
from octavo_loadtest.text import Calibration


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "EVERY", 0.01)


def watched(replicas: tuple[int | None, ...], looks: int) -> list[int | None]:
    with running(Behaviour(replicas=replicas)) as fake:
        watch = ReplicaWatch(Target(fake.url, "fake"), time.perf_counter_ns())
        deadline = time.monotonic() + 20
        while len(watch.seen) < looks and watch.running and time.monotonic() < deadline:
            time.sleep(0.005)
        return [count for _, count in watch.stop()]


def test_a_failed_look_does_not_end_the_watch(fast: None) -> None:
    seen = watched((1, None, None, 3), 5)
    assert seen[:4] == [1, None, None, 3]
    assert set(seen[4:]) == {3}


def test_the_watch_looks_once_more_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "EVERY", 60.0)
    assert watched((1, 2), 1) == [1, 2]


def test_a_server_without_such_a_page_is_not_asked_for_long(fast: None) -> None:
    with running(Behaviour()) as fake:
        watch = ReplicaWatch(Target(fake.url, "fake"), time.perf_counter_ns())
        while watch.running:
            time.sleep(0.005)
        assert len(watch.seen) == server.LOOKS
        assert watch.stop() == []


def test_replicas_of_all_models_where_none_has_the_name(fast: None) -> None:
    with running(Behaviour(replicas=(4,))) as fake:
        watch = ReplicaWatch(Target(fake.url, "another"), time.perf_counter_ns())
        assert {count for _, count in watch.stop()} == {4}


def test_a_key_opens_the_watch_too(fast: None) -> None:
    with running(Behaviour(key="k", replicas=(2,))) as fake:
        target = Target(fake.url, "fake", headers={"Authorization": "Bearer k"})
        assert {count for _, count in ReplicaWatch(target, 0).stop()} == {2}
        assert ReplicaWatch(replace(target, headers={}), 0).stop() == []


def test_a_model_that_loads_is_not_refused() -> None:
    with running(Behaviour(loading=2, ttft=0.0)) as fake:
        target = Target(fake.url, find_model(fake.url, {}))
        for _ in range(2):
            with pytest.raises(LoadTestError, match="503") as told:
                prepare(target)
            assert not isinstance(told.value, Refused)
        assert prepare(target)[1].measured


def test_a_server_that_refuses_says_so() -> None:
    with running(Behaviour(key="k")) as fake, pytest.raises(Refused, match=r"401.*no such key"):
        prepare(Target(fake.url, "fake"))


@pytest.mark.parametrize(("strict", "fields"), [(False, {"ignore_eos", "stream_options"}), (True, {"stream_options"})])
def test_fields_that_a_server_takes(strict: bool, fields: set[str]) -> None:
    with running(Behaviour(strict=strict, ttft=0.0)) as fake:
        target, calibration = prepare(Target(fake.url, "fake"))
    assert set(target.body) == fields
    assert (calibration.per_word, calibration.overhead, calibration.measured) == (1.0, 10.0, True)


def test_what_was_asked_for_wins_over_what_is_wished() -> None:
    with running(Behaviour(ttft=0.0)) as fake:
        target, _ = prepare(Target(fake.url, "fake", body={"ignore_eos": False, "seed": 7}))
    assert (target.body["ignore_eos"], target.body["seed"]) == (False, 7)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(LoadTestError, match=r"127\.0\.0\.1:9"):
        find_model("http://127.0.0.1:9", {})


def test_a_server_that_lists_no_model() -> None:
    with running(Behaviour(key="k")) as fake, pytest.raises(LoadTestError, match=r"names no model \(HTTP 401\)"):
        find_model(fake.url, {})


# ---- what other servers say ------------------------------------------------------------------------------------------


def answering(monkeypatch: pytest.MonkeyPatch, *bodies: bytes, status: int = 200) -> list[bytes]:
    """Each request gets the next of these bodies, then the last; what was asked."""
    asked: list[bytes] = []

    async def fetch(client: object, method: str, path: str, body: bytes = b"", timeout: float = 0.0) -> Answer:
        asked.append(body)
        answer = Answer(status=status)
        answer.reads.append((1, bodies[min(len(asked), len(bodies)) - 1]))
        return answer

    monkeypatch.setattr(Client, "fetch", fetch)
    return asked


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"null", b"[]", b'{"data": null}', b'{"data": []}', b'{"data": [5]}', b'{"data": [{"name": "m"}]}',
     b"\xff\xfe", b'{"data": {"id": "m"}}'],
)  # fmt: skip
def test_a_list_of_models_that_is_none(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, body)
    with pytest.raises(LoadTestError, match=r"names no model \(HTTP 200\); pass --model"):
        find_model("http://x", {})


def test_the_first_of_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, b'{"data": [{"id": "first"}, {"id": "second"}]}')
    assert find_model("http://x", {}) == "first"


def counting(tokens: object) -> bytes:
    return b'{"usage": {"prompt_tokens": %s}}' % str(tokens).encode()


@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [
        (16, 144, Calibration(1.0, 0.0, measured=True)),
        (31, 223, Calibration(1.5, 7.0, measured=True)),  # 1.5 a word, 7 for the template
        (24, 24, Calibration()),
        (144, 16, Calibration()),
        ("null", 144, Calibration()),
        (16, '"x"', Calibration()),
        (16, "1e999", Calibration()),
        (16, "[1]", Calibration()),
    ],
)
def test_how_tokens_are_counted(
    few: object, many: object, expected: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, b"{}", counting(few), counting(many))
    _, calibration = prepare(Target("http://x", "m"))
    assert calibration == expected
    words = [len(json.loads(body)["messages"][0]["content"].split()) for body in asked]
    assert words == [16, 16, 144]
    assert ["stream_options" in json.loads(body) for body in asked] == [True, False, False]
    first = [json.loads(body)["messages"][0]["content"].split()[0:8] for body in asked]
    assert first[1] != first[2]  # or a prefix cache would be asked, which some servers do not count


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Refused), (403, Refused), (400, Refused), (422, Refused), (404, LoadTestError), (408, LoadTestError),
     (425, LoadTestError), (429, LoadTestError), (500, LoadTestError), (503, LoadTestError)],
)  # fmt: skip
def test_which_answers_a_later_one_may_be_better_than(
    status: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, b"\xffno", status=status)
    with pytest.raises(LoadTestError, match=f"http://x answers {status}: .no") as told:
        prepare(Target("http://x", "m"))
    assert type(told.value) is error
    assert len(asked) == (4 if status in (400, 422) else 1)  # only these may be about a field that is not known


def test_an_embedding_is_asked_for_with_no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, b"{}", counting(16), counting(144))
    target, calibration = prepare(Target("http://x", "m", "embeddings", body={"dimensions": 4}))
    assert (target.body, calibration.measured) == ({"dimensions": 4}, True)
    assert not {"stream", "stream_options", "ignore_eos"} & {key for body in asked for key in json.loads(body)}


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'{"shards": {"m": 3, "other": 2}}', 3),
        (b'{"shards": {"a": 3, "b": 2}}', 5),
        (b'{"shards": {}}', 0),
        (b'{"shards": [3]}', None),
        (b'{"shards": 3}', None),
        (b'{"shards": {"m": 1e999}}', None),
        (b'{"shards": {"m": null}}', None),
        (b'{"shards": {"a": "x"}}', None),
        (b"[]", None),
        (b"ok", None),
        (b"", None),
    ],
)
def test_what_a_health_page_says_of_replicas(body: bytes, count: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in words of its own ended the watch's thread with a traceback."""
    answering(monkeypatch, body)
    watch = ReplicaWatch(Target("http://x", "m"), 0)
    assert {seen for _, seen in watch.stop()} == ({count} if count is not None else set())
    assert {seen for _, seen in watch.seen} == {count}


def test_requests_before_a_run_are_counted_where_they_were_answered() -> None:
    sessions = [Session(f"w{i}", 0.0, (Turn(i, "a word", 2), Turn(9, "never sent", 2))) for i in range(3)]
    with running(Behaviour(ttft=0.0, itl=0.0, loading=1)) as fake:
        target = Target(fake.url, "fake")
        assert server.warm_up(target, sessions) == 2
        assert server.warm_up(target, sessions) == 3
        assert server.warm_up(target, []) == 0
    assert server.warm_up(target, sessions) == 0  # it is gone: nothing is raised, a verdict says so


def test_an_address_is_taken_while_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert server.taken(url)
        assert server.taken(f"{url}/v1")
    assert not server.taken(url)
