"""Keys, cache namespaces, priorities: no HTTP."""

from __future__ import annotations

import logging
import os
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import BadRequest, ConfigError
from octavo_serve.api.access import LOOK_SECONDS, Caller, Keys, KnownKey, Rules, read_keys

ALICE, BOB = Caller("alice"), Caller("bob", operator=True)


def known(text: bytes, holder: Caller) -> KnownKey:
    return KnownKey(holder, sha256(text).digest())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_opens_for_its_holder_alone() -> None:
    keys = Keys([known(b"one", ALICE), known(b"two", BOB), known(b"three", ALICE)])
    assert [keys.holder(key) for key in (b"one", b"two", b"three", b"four", b"", b"on", b"one ")] == [
        ALICE, BOB, ALICE, None, None, None, None
    ]  # fmt: skip
    assert keys.names == ["alice", "bob"]


@given(st.binary(max_size=600))
def test_nothing_but_the_key_opens(sent: bytes) -> None:
    keys = Keys([known(b"correct horse", ALICE)])
    assert keys.holder(sent) == (ALICE if sent == b"correct horse" else None)


def test_no_text_of_a_key_is_kept() -> None:
    assert "secret" not in repr(vars(Keys([known(b"secret", ALICE)])))


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "keys"
    file.write_text("# the old one first\nold\n\nnew\n")
    keys = Keys([KnownKey(ALICE, file=file)], clock)
    assert (keys.holder(b"old"), keys.holder(b"new"), keys.holder(b"# the old one first")) == (ALICE, ALICE, None)
    replacement = tmp_path / "next"
    replacement.write_text("new\n")
    replacement.replace(file)
    assert keys.holder(b"old") == ALICE  # not looked at for every request
    clock.now += LOOK_SECONDS
    assert (keys.holder(b"old"), keys.holder(b"new")) == (None, ALICE)


def test_a_file_of_another_systems_editor(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfone\r\n# two\r\nthree\r\n")
    assert read_keys(tmp_path / "keys") == [b"one", b"three"]


def test_a_file_that_pretends_to_be_the_old_one_is_read_again(tmp_path: Path) -> None:
    """Rights that are given later change no time of the content either, and open a file that could not be read."""
    clock, file = Clock(), tmp_path / "keys"
    file.write_text("old")
    keys = Keys([KnownKey(ALICE, file=file)], clock)
    before = file.stat()
    with file.open("r+") as opened:
        opened.write("new")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.now += LOOK_SECONDS
    assert (keys.holder(b"old"), keys.holder(b"new")) == (None, ALICE)


def test_a_file_that_is_gone_or_empty_opens_nothing_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, file = Clock(), tmp_path / "keys"
    keys = Keys([KnownKey(ALICE, file=file), known(b"two", BOB)], clock)
    assert (keys.holder(b""), keys.holder(b"one"), keys.holder(b"two")) == (None, None, BOB)
    for content, holder in (("one", ALICE), ("", None), ("one", ALICE)):
        file.write_text(content)
        clock.now += LOOK_SECONDS
        assert (keys.holder(b"one"), keys.holder(b""), keys.holder(b"two")) == (holder, None, BOB)
    file.unlink()
    caplog.clear()
    clock.now += LOOK_SECONDS
    with caplog.at_level(logging.ERROR, "ray.serve"):
        assert keys.holder(b"one") is None
        clock.now += LOOK_SECONDS
        assert keys.holder(b"one") is None
    assert len(caplog.records) == 1  # said once, not for every request


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"two words", "visible characters"),
        (b"x" * 513, "visible characters"),
        ("schl\u00fcssel".encode(), "visible characters"),
        (b"x\n" * 40_000, "visible characters"),
        (None, "cannot be read"),
    ],
)
def test_a_file_without_keys_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_keys(file)
    assert str(file) in str(caught.value)
    assert "words" not in str(caught.value)


names = st.text("abcXYZ019._-", min_size=1, max_size=8)


@given(names, names, st.text(max_size=6), st.text(max_size=6))
def test_namespaces_of_two_keys_never_meet(one: str, other: str, salt: str, other_salt: str) -> None:
    rules = Rules(isolate_cache=True)
    same = (one, salt) == (other, other_salt)
    assert (rules.cache_salt(Caller(one), salt) == rules.cache_salt(Caller(other), other_salt)) == same


def test_without_isolation_the_clients_own_salt_stays() -> None:
    assert [Rules().cache_salt(ALICE, salt) for salt in ("", "mine")] == ["", "mine"]


def test_a_clients_priority_counts_only_where_it_may_and_within_bounds() -> None:
    assert Rules().priority(0) == 0
    with pytest.raises(BadRequest, match="priority is not for clients of this server") as caught:
        Rules().priority(-1)
    assert caught.value.param == "priority"
    assert [Rules(priorities=(-1, 5)).priority(asked) for asked in (-9, -1, 0, 3, 99)] == [-1, -1, 0, 3, 5]
    assert Rules(priorities=(3, 5)).priority(0) == 3  # silence is no way before those who may say 3 at best


def test_who_hears_what() -> None:
    assert Rules().tells(Caller())
    keys = Keys([known(b"one", ALICE)])
    closed = Rules(keys, disclose=False)
    assert [(closed.tells(who), closed.explains(who)) for who in (None, ALICE, BOB)] == [
        (False, False), (False, False), (True, True)
    ]  # fmt: skip
    assert [Rules(keys).explains(who) for who in (None, ALICE)] == [False, True]
    assert Rules(disclose=False).explains(None)
