"""A writer's life: elements in, events out, and what a protocol leaves out is nothing."""

from __future__ import annotations

from typing import Any

from octavo_serve.api.pieces import Begun, Ended, Piece, Whole
from octavo_serve.api.surface import Writer, to_json

JOB: Any = None


class Plain(Writer[dict[str, Any], dict[str, Any]]):
    """The least that a protocol must say."""

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        return [{"text": piece.text}]

    def whole(self, whole: Whole) -> dict[str, Any]:
        return {"text": "".join(piece.text for piece in whole.choices()), "cached": self.begun[0].cached_tokens}


def test_elements_become_events_in_their_order() -> None:
    writer, begun = Plain(JOB, tells=True), Begun(3, None, 5)
    elements = [begun, Piece(0, "a", [1]), Piece(0, "b", [2]), Ended()]
    assert [writer.events(element) for element in elements] == [[], [{"text": "a"}], [{"text": "b"}], []]
    assert writer.begun == {3: begun}
    assert not any(writer.is_large(element) for element in elements)


def test_an_answer_knows_where_its_prompts_began() -> None:
    whole = Whole()
    whole.add([Begun(0, None, 5), Piece(0, "a", [1]), Piece(0, "b", [2], finish_reason="stop"), Ended()])
    assert Plain(JOB, tells=True).answer(whole) == {"text": "ab", "cached": 5}


def test_json_is_compact_utf_8() -> None:
    assert to_json({"a": ["é", None, 1.0]}) == '{"a":["é",null,1.0]}'.encode()
