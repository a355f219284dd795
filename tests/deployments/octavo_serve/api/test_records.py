"""Records: found by their owner alone, bounded in bytes and time, shared by several gateways, there after a restart."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import BadRequest, OctavoError
from octavo_serve.api.records import OVERHEAD, Record, Records, RecordSettings

T = TypeVar("T")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def record(name: str, owner: str = "alice", size: int = 100, previous: str | None = None) -> Record:
    return Record(id=name, owner=owner, body=b"x" * size, extra=b"tokens", previous=previous)


def test_a_record_is_its_owners_alone() -> None:
    records = Records()
    assert run(records.put(record("a")))
    assert run(records.get("alice", "a")) == record("a")
    assert run(records.get("bob", "a")) is None
    assert not run(records.delete("bob", "a"))
    assert run(records.chain("bob", "a", 10, 1000)) == []
    assert run(records.delete("alice", "a"))
    assert run(records.get("alice", "a")) is None
    assert not run(records.delete("alice", "a"))


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "records.sqlite"
    records = Records(RecordSettings(path))
    assert not path.exists()
    run(records.put(record("a")))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_gateways_share_a_file_and_a_secret_and_find_it_again(tmp_path: Path) -> None:
    at = RecordSettings(tmp_path / "records.sqlite")
    one, two = Records(at), Records(at)
    run(one.put(record("a")))
    assert run(two.get("alice", "a")) == record("a")
    secret = run(one.secret())
    assert len(secret) == 32
    assert run(two.secret()) == run(Records(at).secret()) == secret != run(Records().secret())
    assert run(Records(at).get("alice", "a")) == record("a")


def test_what_was_not_used_for_longest_goes_first() -> None:
    clock = Clock()
    size = OVERHEAD + 106
    records = Records(RecordSettings(max_bytes=3 * size), clock)
    for name in "abc":
        clock.now += 1
        run(records.put(record(name)))
    clock.now += 1
    run(records.get("alice", "a"))
    clock.now += 1
    run(records.put(record("d")))
    assert [name for name in "abcd" if run(records.get("alice", name))] == ["a", "c", "d"]
    with pytest.raises(BadRequest, match="store: false"):
        run(records.put(record("e", size=10 * size)))


def test_what_was_not_used_for_long_is_gone() -> None:
    clock = Clock()
    records = Records(RecordSettings(ttl_s=10), clock)
    run(records.put(record("a")))
    clock.now += 9
    assert run(records.get("alice", "a"))
    clock.now += 9
    assert run(records.chain("alice", "a", 10, 1000))
    clock.now += 11
    assert run(records.get("alice", "a")) is None


def test_a_chain_is_read_from_its_end() -> None:
    records = Records()
    for name, previous in (("a", None), ("b", "a"), ("c", "b")):
        run(records.put(record(name, previous=previous)))
    chain = run(records.chain("alice", "c", 3, 1000))
    assert [(one.id, one.extra) for one in chain] == [("c", b"tokens"), ("b", b""), ("a", b"")]
    for most in ((2, 1000), (3, 200)):
        with pytest.raises(BadRequest, match="too long"):
            run(records.chain("alice", "c", *most))
    run(records.delete("alice", "a"))
    assert [one.id for one in run(records.chain("alice", "c", 3, 1000))] == ["c", "b"]


def test_a_record_is_replaced_only_where_there_is_one() -> None:
    records = Records()
    assert not run(records.put(record("a"), replaces=True))
    run(records.put(record("a", size=1)))
    assert run(records.put(record("a", size=2), replaces=True))
    found = run(records.get("alice", "a"))
    assert found is not None
    assert len(found.body) == 2
    assert not run(records.put(record("a", size=3), replaces=b"x"))
    assert run(records.get("alice", "a")) == found
    assert run(records.put(record("a", size=3), replaces=found.body))


def test_whoever_works_on_a_record_says_so() -> None:
    clock = Clock()
    records = Records(clock=clock)
    assert run(records.live("alice", "a")) is None
    run(records.put(record("a", size=2)))
    clock.now += 5
    assert run(records.live("alice", "a")) == b"xx"
    assert run(records.live("bob", "a")) is None
    found = run(records.get("alice", "a"))
    assert found is not None
    assert found.alive == clock.now


def test_a_file_that_cannot_be_used_is_an_error_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "records.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(OctavoError, match="cannot be used"):
        run(Records(RecordSettings(tmp_path / "records.sqlite")).get("alice", "a"))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3000), st.booleans()), max_size=30))
def test_the_bound_holds_whatever_is_done(steps: list[tuple[str, int, bool]]) -> None:
    bound = 4 * OVERHEAD + 5000
    records = Records(RecordSettings(max_bytes=bound))

    async def perform() -> None:
        for name, size, puts in steps:
            await (records.put(record(name, size=size)) if puts else records.delete("alice", name))
            kept = [found for one in "abcdef" if (found := await records.get("alice", one)) is not None]
            assert sum(one.size for one in kept) <= bound
            assert not puts or name in [one.id for one in kept]

    asyncio.run(perform())
