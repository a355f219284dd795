"""Signatures of thinking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_serve.surfaces.messages.signature import carried, sign


@given(st.text(st.characters(), max_size=50))
def test_a_signature_carries_the_thinking_if_it_is_to(thinking: str) -> None:
    assert carried(sign(thinking, carry=True)) == thinking
    assert carried(sign(thinking, carry=False)) == ""


@pytest.mark.parametrize("signature", ["", "EuYBCkQYAi...", "é", "AAAA", sign("Hm.", carry=True)[:-4], "A" * 64])
def test_another_servers_signature_carries_nothing(signature: str) -> None:
    assert carried(signature) == ""
