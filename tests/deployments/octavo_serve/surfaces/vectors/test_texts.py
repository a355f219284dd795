"""One text or many."""

from __future__ import annotations

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.pooling import Asking
from octavo_serve.surfaces.vectors.texts import named, texts_of

ASKING = Asking(kind="embd", operation="embeddings", model=None, param="input")


def test_texts_of_a_field() -> None:
    assert (texts_of("a", "input"), texts_of([1, 2], "input")) == (["a"], [[1, 2]])
    assert (texts_of(["a", "b"], "input"), texts_of([[1], [2]], "input")) == (["a", "b"], [[1], [2]])
    with pytest.raises(BadRequest, match="input must not be empty"):
        texts_of([], "input")


def test_names_of_texts() -> None:
    for given, name in (("a", "input"), ([1, 2], "input"), (["a"], None), ([[1]], None)):
        asking = named(ASKING, texts_of(given, "input"), given)
        assert (asking.name and asking.name(0)) == name
