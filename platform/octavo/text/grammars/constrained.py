"""Sampling parameters in a model's own terms: texts that say what an answer may be become grammars and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from octavo.request import SamplingParams
from octavo.text.grammars.sources import grammar
from octavo.text.tokenizer import Tokenizer


def is_constrained(params: SamplingParams) -> bool:
    """Whether `constrained` makes anything of them."""
    return params.structured_outputs is not None or bool(params.bad_words)


def constrained(params: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """A copy that holds what an engine follows. CPU work: up to 0.2 s (see `sources.rule`).

    Raises:
        BadRequest: a grammar is malformed or too large.
    """
    wanted = params.structured_outputs
    return replace(
        params,
        structured_outputs=None,
        grammar=params.grammar if wanted is None else grammar(wanted),
        bad_token_ids=[*params.bad_token_ids, *bad_token_ids(tokenizer, params.bad_words)],
    )


def bad_token_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """Tokens of each word at a text's beginning, and after a space where that is another token, as vLLM's."""
    found = []
    for word in words:
        bare = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        found.append(bare)
        if spaced[:1] != bare[:1] and len(spaced) == len(bare):
            found.append(spaced)
    return [ids for ids in found if ids]
