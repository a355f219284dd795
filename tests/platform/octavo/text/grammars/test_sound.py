from __future__ import annotations

import json
import threading

import pytest

from octavo.text.grammars import sound
from octavo.text.grammars.sound import is_sound


def test_a_grammar_is_sound_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_sound('start: "a" <[3]>')
    assert not is_sound("start: b")
    assert not is_sound(f"start: /{'a' * 5000}/")
    monkeypatch.setattr(sound, "_compiles", None)  # what is known is not compiled again
    assert not is_sound("start: b")


def test_a_deep_schema_does_not_end_the_process():
    chain = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(3000)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**chain, "a3000": {"type": "string"}}}
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(is_sound(f"start: %json {json.dumps(schema)}")))
    thread.start()  # with the stack of a gateway's threads
    thread.join()
    assert len(found) == 1
