"""Sealed reasoning comes back as it was, to the caller that it was made for, or not at all."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import BadRequest
from octavo_serve.surfaces.responses.sealing import seal, unseal

SECRET = b"s" * 32


@given(text=st.text(), owner=st.text())
def test_it_comes_back(text: str, owner: str) -> None:
    assert unseal(SECRET, owner, seal(SECRET, owner, text)) == text


@given(text=st.text(min_size=1), position=st.integers(0), bit=st.integers(0, 7))
def test_a_changed_bit_is_refused(text: str, position: int, bit: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(seal(SECRET, "alice", text)))
    raw[position % len(raw)] ^= 1 << bit
    with pytest.raises(BadRequest, match="did not make for this caller"):
        unseal(SECRET, "alice", base64.urlsafe_b64encode(raw).decode())


@pytest.mark.parametrize("wrong", ["", "x", "gAAAAABn", "é", "A" * 100])
def test_what_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(BadRequest):
        unseal(SECRET, "alice", wrong)


def test_anothers_is_refused() -> None:
    sealed = seal(SECRET, "alice", "Hm.")
    for secret, owner in ((SECRET, "bob"), (b"t" * 32, "alice")):
        with pytest.raises(BadRequest):
            unseal(secret, owner, sealed)
