from __future__ import annotations

import pytest

from octavo.text.grammars import sound
from octavo.text.grammars.sound import is_sound


def test_a_grammar_is_sound_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_sound('start: "a" <[3]>')
    assert not is_sound("start: b")
    assert not is_sound(f"start: /{'a' * 5000}/")
    monkeypatch.setattr(sound, "_compiles", None)  # what is known is not compiled again
    assert not is_sound("start: b")
