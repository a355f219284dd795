"""Grammars tried on a tokenizer whose tokens are bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from llguidance import LLMatcher, LLTokenizer


@pytest.fixture(scope="session")
def accepts() -> Callable[[str, str], bool]:
    """Whether a grammar, which must be one, accepts a text as a whole."""
    tokenizer = LLTokenizer("byte")

    def accepts(source: str, text: str) -> bool:
        error, messages = LLMatcher.validate_grammar_with_warnings(source, tokenizer)
        assert not error, messages
        matcher, ids = LLMatcher(tokenizer, source), list(text.encode())
        taken: int = matcher.try_consume_tokens(ids)
        return taken == len(ids) and bool(matcher.is_accepting())

    return accepts
