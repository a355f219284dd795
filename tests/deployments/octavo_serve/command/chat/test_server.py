"""A served model: its pieces, and servers that answer strangely."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_serve.command.chat.server import ServedModel
from octavo_serve.command.remote import Remote, RemoteError

ASKED = [{"role": "user", "content": "What is the capital of France?"}]


def test_an_answer_comes_in_pieces_with_its_tokens(serving) -> None:
    with serving() as url:
        model = ServedModel(Remote(url))
        pieces = list(model.answer(ASKED, {"temperature": 0}))
        assert (model.name, model.models()) == ("tiny", ["tiny"])
        assert "".join(piece.text for piece in pieces) == "Paris."
        assert pieces[-1].tokens > 1
        with pytest.raises(RemoteError, match="did you mean 'tiny'"):
            model.use("tny")
        with pytest.raises(RemoteError, match="temperature must be"):
            list(model.answer(ASKED, {"temperature": "hot"}))
        model.close()


class Strange(Remote):
    """A server that says what a test wants."""

    def __init__(self, models: Any, events: Any = ()) -> None:
        super().__init__("http://127.0.0.1:1")
        self._models, self._events = models, events

    def json(self, path: str, *, failing: bool = False) -> Any:
        return self._models

    def events(self, path: str, body: Any) -> Any:
        yield from self._events


@pytest.mark.parametrize("models", [None, {}, {"data": 1}, [], {"data": []}])
def test_a_server_without_models_is_refused(models: Any) -> None:
    with pytest.raises(RemoteError):
        ServedModel(Strange(models))


def test_reasoning_has_two_names_and_what_is_strange_is_passed_over() -> None:
    deltas = [{"reasoning": "hm"}, {"reasoning_content": "so", "content": "4"}, {"content": 4}, {"content": ""}]
    events = [1, {}, {"choices": []}, {"choices": [{"delta": None}]}, {"usage": {"completion_tokens": "many"}}]
    events += [{"usage": {"completion_tokens": number}} for number in (-1, 10**400)]
    events += [{"choices": [{"delta": delta}]} for delta in deltas]
    model = ServedModel(Strange({"data": [{"id": "a"}, {}, 7]}, events))
    assert [(piece.text, piece.thought) for piece in model.answer([], {})] == [("hm", True), ("so", True), ("4", False)]
