from __future__ import annotations

import pytest

from octavo_serve.wire.challenge import SECRET_BYTES, Challenge, Stranger

SECRET = bytes(range(SECRET_BYTES))


def meet(gateway: Challenge, shard: Challenge) -> None:
    word = shard.answer(gateway.first)
    assert len(word) == gateway.expected
    word = gateway.answer(word)
    assert len(word) == shard.expected
    assert shard.answer(word) == b""
    assert gateway.expected == shard.expected == 0


def test_two_that_know_the_secret_meet_and_never_say_it() -> None:
    gateway, shard = Challenge(SECRET, opens=True), Challenge(SECRET, opens=False)
    assert shard.first == b""
    assert len(gateway.first) == shard.expected
    meet(gateway, shard)


def test_a_shard_that_does_not_know_it_is_told_nothing() -> None:
    gateway, shard = Challenge(SECRET, opens=True), Challenge(SECRET[::-1], opens=False)
    with pytest.raises(Stranger):
        gateway.answer(shard.answer(gateway.first))
    assert gateway.expected


def test_a_gateway_that_does_not_know_it_is_not_let_in() -> None:
    shard, other = Challenge(SECRET, opens=False), Challenge(SECRET, opens=False)
    shard.answer(other._own)
    for word in (bytes(32), other.answer(shard._own)[32:]):  # the second: another shard's proof, passed on
        with pytest.raises(Stranger):
            shard.answer(word)
    assert shard.expected


def test_what_was_overheard_opens_nothing() -> None:
    gateway, shard = Challenge(SECRET, opens=True), Challenge(SECRET, opens=False)
    said = gateway.answer(shard.answer(gateway.first))
    again = Challenge(SECRET, opens=False)
    again.answer(gateway.first)
    with pytest.raises(Stranger):
        again.answer(said)
