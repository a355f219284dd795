"""What is asked of a server outside a measurement."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from octavo_loadtest import server
from octavo_loadtest.errors import LoadTestError, Refused
from octavo_loadtest.fake_server import Behaviour, running
from octavo_loadtest.job import Target
from octavo_loadtest.server import ReplicaWatch, find_model, prepare


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
