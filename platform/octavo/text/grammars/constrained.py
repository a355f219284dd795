"""Sampling parameters in a model's own terms: texts that say what an answer may be become grammars and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from octavo.constraint import Grammar, StructuredOutputs
from octavo.request import SamplingParams
from octavo.text.grammars.messages import MessageGrammar
from octavo.text.grammars.sources import grammar
from octavo.text.responses.families import template_of
from octavo.text.tokenizer import Tokenizer


def is_constrained(params: SamplingParams) -> bool:
    """Whether `constrained` makes anything of them."""
    return params.structured_outputs is not None or bool(params.bad_words)


def constrained(params: SamplingParams, tokenizer: Tokenizer, chat: str | None = None) -> SamplingParams:
    """A copy that holds what an engine follows. CPU work: up to 0.2 s (see `sources.rule`).

    Args:
        chat: the prompt, if the model's chat template made it: a model that thinks does so before it answers.

    Raises:
        BadRequest: a grammar is malformed or too large.
    """
    wanted = params.structured_outputs
    return replace(
        params,
        structured_outputs=None,
        bad_words=[],
        grammar=params.grammar if wanted is None else _answer(wanted, tokenizer, chat),
        bad_token_ids=[*params.bad_token_ids, *bad_token_ids(tokenizer, params.bad_words)],
    )


def _answer(wanted: StructuredOutputs, tokenizer: Tokenizer, chat: str | None) -> Grammar:
    template = None if chat is None else template_of(tokenizer)
    if template is None or not template.reasons:
        return grammar(wanted)
    return MessageGrammar(template, tokenizer.eos_token_ids, chat or "").answer(wanted)


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
