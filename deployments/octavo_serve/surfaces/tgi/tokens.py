"""Tokens as TGI shows them: each with its text, its log probability, and those that were as likely."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.request import PackedLogprobs, TokenLogprobs
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.tokenizer import Tokenizer
from octavo_serve.surfaces.openai.writer import finite
from octavo_serve.surfaces.tgi.schemas import PrefillToken, Token


class TokenTexts:
    """Texts of one sequence's tokens; those that are not special are its text when joined.

    Args:
        prompt_token_ids: of the prompt that the sequence continues.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids)
        self._told = 0

    def push(self, token_id: int, whole: str | None = None) -> str:
        """The next token's text; with `whole`, the sequence's text, of its last one."""
        if self._tokenizer.is_special(token_id):
            return self._tokenizer.token_text(token_id)
        text = self._detokenizer.push([token_id])
        if whole is not None:  # half a character ends here, and what a stop string leaves of the token
            text = whole[self._told :]
        self._told += len(text)
        return text


def token(tokenizer: Tokenizer, token_id: int, text: str, entries: TokenLogprobs | None) -> Token:
    """A token of the answer."""
    logprob = None if entries is None else finite(entries[token_id].logprob)
    return {"id": token_id, "text": text, "logprob": logprob, "special": tokenizer.is_special(token_id)}


def top_tokens(tokenizer: Tokenizer, entries: TokenLogprobs, count: int) -> list[Token]:
    """The likeliest tokens in a place, likeliest first."""
    ranked = sorted((entry.rank, token_id) for token_id, entry in entries.items() if 0 < entry.rank <= count)
    return [token(tokenizer, token_id, tokenizer.token_text(token_id), entries) for _, token_id in ranked[:count]]


def prefill(tokenizer: Tokenizer, token_ids: Iterable[int], logprobs: PackedLogprobs | None) -> list[PrefillToken]:
    """The input's tokens; nothing predicts the first."""
    return [
        {
            "id": token_id,
            "text": tokenizer.token_text(token_id),
            "logprob": None if entries is None else finite(entries[token_id].logprob),
        }
        for token_id, entries in zip(token_ids, logprobs or (), strict=False)
    ]
