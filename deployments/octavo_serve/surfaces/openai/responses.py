"""From generated pieces to OpenAI's response objects and stream events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from octavo import __version__
from octavo.request import Placement, TokenLogprobs
from octavo.text.tokenizer import Tokenizer
from octavo_serve.surfaces.openai.schemas import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)


@dataclass(slots=True)
class Piece:
    """What came for one choice: text and the tokens it is made of.

    Attributes:
        choice: index in the response.
        text: may be empty while characters or stop strings are still incomplete.
        logprobs: one entry per token, when asked for.
        finish_reason: set on a choice's last piece.
    """

    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


def _finite(logprob: float) -> float:
    """JSON has no infinity; vLLM's stand-in for an impossible token."""
    return max(logprob, -9999.0)


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
    """Token counts; `cached_tokens` of the prompt's came from the prefix cache."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@lru_cache
def fingerprint(model: str) -> str:
    """The API's `system_fingerprint`: changes with the model and with Octavo's version."""
    return "fp_" + blake2b(f"{__version__}\0{model}".encode(), digest_size=5).hexdigest()


class TokenIdNames:
    """A tokenizer that calls each token "token_id:ID", as vLLM does where texts could be mistaken."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def token_text(self, token_id: int) -> str:
        """The token's name."""
        return f"token_id:{token_id}"

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes it stands for."""
        return self._tokenizer.token_bytes(token_id)


Names = Tokenizer | TokenIdNames


def chat_logprobs(piece: Piece, tokenizer: Names, top: int) -> ChatLogprobs | None:
    """Log probabilities in chat's form, with the `top` most likely alternatives of each token."""
    if piece.logprobs is None:
        return None
    content: list[TokenLogprob] = []
    for token_id, entries in zip(piece.token_ids, piece.logprobs, strict=True):
        ranked = sorted(entries.items(), key=lambda item: item[1].rank)[:top]
        chosen = _top_logprob(tokenizer, token_id, entries[token_id].logprob)
        alternatives = [_top_logprob(tokenizer, other, entry.logprob) for other, entry in ranked]
        content.append({**chosen, "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _top_logprob(tokenizer: Names, token_id: int, logprob: float) -> TopLogprob:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def completion_logprobs(
    token_ids: list[int], logprobs: list[TokenLogprobs | None], tokenizer: Names, offsets: list[int]
) -> CompletionLogprobs:
    """Log probabilities in the older form of /v1/completions.

    Args:
        logprobs: one entry per token; None for a first prompt token, which nothing predicts.
        offsets: of the tokens in the choice's text.
    """
    both = list(zip(token_ids, logprobs, strict=True))
    return {
        "tokens": [tokenizer.token_text(token_id) for token_id in token_ids],
        "token_logprobs": [None if entries is None else _finite(entries[chosen].logprob) for chosen, entries in both],
        "top_logprobs": [None if entries is None else _by_text(chosen, entries, tokenizer) for chosen, entries in both],
        "text_offset": offsets,
    }


def _by_text(chosen: int, entries: TokenLogprobs, tokenizer: Names) -> dict[str, float]:
    """Token text -> log probability, likeliest first.

    Several tokens can have one text: parts of characters are all U+FFFD. It is that of the chosen token, else of the
    likeliest; the others are called "token_id:ID", as in `TokenIdNames`.
    """
    falling = sorted(entries.items(), key=lambda item: -item[1].logprob)
    texts = {token_id: tokenizer.token_text(token_id) for token_id, _ in falling}
    owners = {text: token_id for token_id, text in reversed(texts.items())} | {texts[chosen]: chosen}
    return {
        texts[token_id] if owners[texts[token_id]] == token_id else f"token_id:{token_id}": _finite(entry.logprob)
        for token_id, entry in falling
    }


def joined_logprobs(parts: list[CompletionLogprobs]) -> CompletionLogprobs:
    """The parts of one choice, end to end."""
    return {
        "tokens": [token for part in parts for token in part["tokens"]],
        "token_logprobs": [value for part in parts for value in part["token_logprobs"]],
        "top_logprobs": [top for part in parts for top in part["top_logprobs"]],
        "text_offset": [offset for part in parts for offset in part["text_offset"]],
    }


def prompt_logprobs(entries: list[TokenLogprobs | None], tokenizer: Tokenizer) -> PromptLogprobs:
    """vLLM's `prompt_logprobs`."""
    return [
        None
        if tokens is None
        else {
            str(token_id): {
                "logprob": _finite(e.logprob),
                "rank": e.rank,
                "decoded_token": tokenizer.token_text(token_id),
            }
            for token_id, e in tokens.items()
        }
        for tokens in entries
    ]


LARGE = 64
"""Choices, or tokens with log probabilities, that take about a millisecond to write when each has 20 alternatives."""


def is_large(answer: Mapping[str, Any]) -> bool:
    """Whether an answer or a stream's event may take more than a few milliseconds to write as JSON; 0.3 us."""
    choices = answer["choices"]
    if answer.get("prompt_logprobs") is not None or len(choices) > LARGE:
        return True
    for choice in choices:
        logprobs = choice["logprobs"]
        if logprobs is not None and len(logprobs.get("content") or logprobs.get("tokens") or ()) > LARGE:
            return True
        if choice.get("prompt_logprobs") is not None:
            return True
    return False


def routing_headers(placed: Sequence[tuple[Placement, int]]) -> dict[str, str]:
    """Headers that say where a request's prompts were sent, why, and how many of their tokens were cached there."""
    predicted, actual = sum(placement.cached_tokens for placement, _ in placed), sum(cached for _, cached in placed)
    return {
        "x-octavo-shard": ", ".join(dict.fromkeys(placement.shard for placement, _ in placed)),
        "x-octavo-route-reason": ", ".join(dict.fromkeys(placement.reason for placement, _ in placed)),
        "x-octavo-cached-tokens": f"predicted={predicted}, actual={actual}",
    }
