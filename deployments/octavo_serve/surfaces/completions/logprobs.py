"""Log probabilities in the older format of /v1/completions."""

from __future__ import annotations

from octavo.request import TokenLogprobs
from octavo_serve.surfaces.completions.schemas import CompletionLogprobs
from octavo_serve.surfaces.openai.writer import Names, finite


def completion_logprobs(
    token_ids: list[int], logprobs: list[TokenLogprobs | None], names: Names, offsets: list[int]
) -> CompletionLogprobs:
    """Log probabilities of a run of tokens.

    Args:
        logprobs: one entry per token; None for the first prompt token, which has none.
        offsets: positions of the tokens in the choice's text, in characters.
    """
    both = list(zip(token_ids, logprobs, strict=True))
    return {
        "tokens": [names.token_text(token_id) for token_id in token_ids],
        "token_logprobs": [None if entries is None else finite(entries[chosen].logprob) for chosen, entries in both],
        "top_logprobs": [None if entries is None else _by_text(chosen, entries, names) for chosen, entries in both],
        "text_offset": offsets,
    }


def _by_text(chosen: int, entries: TokenLogprobs, names: Names) -> dict[str, float]:
    """Token text -> log probability, likeliest first.

    Several tokens can have the same text: parts of characters are all U+FFFD. The text then stands for the chosen
    token, or else for the likeliest; the others are named "token_id:ID", as in `TokenIdNames`.
    """
    falling = sorted(entries.items(), key=lambda item: -item[1].logprob)
    texts = {token_id: names.token_text(token_id) for token_id, _ in falling}
    owners = {text: token_id for token_id, text in reversed(texts.items())} | {texts[chosen]: chosen}
    return {
        texts[token_id] if owners[texts[token_id]] == token_id else f"token_id:{token_id}": finite(entry.logprob)
        for token_id, entry in falling
    }


def joined_logprobs(parts: list[CompletionLogprobs]) -> CompletionLogprobs:
    """The log probabilities of one choice's parts, concatenated."""
    return {
        "tokens": [token for part in parts for token in part["tokens"]],
        "token_logprobs": [value for part in parts for value in part["token_logprobs"]],
        "top_logprobs": [top for part in parts for top in part["top_logprobs"]],
        "text_offset": [offset for part in parts for offset in part["text_offset"]],
    }
