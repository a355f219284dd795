"""Bounds of a body: what fits the longest context passes them, however it is written."""

from __future__ import annotations

import json

import pytest

from octavo_serve.api.body import parse
from octavo_serve.api.bounds import MAX_PROMPT_TOKENS, UNKNOWN_CONTEXT, BodyBounds
from octavo_serve.surfaces.completions.schemas import CompletionRequest

BOUNDS = BodyBounds(8192)


def test_a_body_as_long_as_the_context_needs_is_read() -> None:
    text = "the quick brown fox, " * 80_000
    assert parse(CompletionRequest, b'{"prompt":"' + text.encode() + b'"}', BOUNDS).prompt == text
    ids = list(range(100_000))
    assert parse(CompletionRequest, {"prompt": [ids, ids]}, BOUNDS).prompt == [ids, ids]


@pytest.mark.parametrize("context", [256, UNKNOWN_CONTEXT, MAX_PROMPT_TOKENS])
def test_ids_and_texts_of_a_whole_context_fit(context: int) -> None:
    bounds = BodyBounds(context)
    ids = [123_456] * context
    assert len(json.dumps({"prompt": ids})) <= bounds.num_bytes
    assert len(ids) <= bounds.structure  # commas
    assert len(json.dumps({"prompt": "\u00e9ab " * context})) <= bounds.num_bytes  # escaped: 9 bytes a token
