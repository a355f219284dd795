from __future__ import annotations

import json
import threading

import pytest

from octavo.errors import BadRequest
from octavo.text.grammars import sound
from octavo.text.grammars.brief import TakesLong, briefly
from octavo.text.grammars.sound import check_sound, is_sound


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


def _grammar_of(schema: object) -> str:
    return f"start: %json {json.dumps(schema)}"


def test_of_a_schema_that_is_not_sound_the_part_is_named():
    check_sound({"type": "string"}, "field", _grammar_of)
    wrong = {"properties": {"a": {"items": {"type": "nothing"}}}}
    for _ in range(2):  # known, too
        with pytest.raises(BadRequest, match=r"^field\.properties\.a\.items\.type: .*nothing") as raised:
            check_sound(wrong, "field", _grammar_of)
        assert raised.value.param == "field.properties.a.items.type"
        with pytest.raises(TakesLong):  # the search does
            briefly(check_sound, wrong, "field", _grammar_of)


def test_what_no_grammar_can_be_made_of_is_searched_too():
    def grammar_of(schema: dict[str, dict[str, object]]) -> str:
        if schema["properties"]["a"] is not True:
            raise BadRequest("field: no a", "field")
        return "start: /a/"

    with pytest.raises(BadRequest, match=r"^field\.properties\.a: no a"):
        check_sound({"properties": {"a": {}, "b": {}}}, "field", grammar_of)
