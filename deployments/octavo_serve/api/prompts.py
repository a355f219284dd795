"""Turns prompts into requests for the engine: tokenises, checks and hashes them.

All of this is CPU work; `is_long` tells when it is too much for an event loop. A text's length is checked before it is
tokenised, because 0.5 MB of digits take a tokenizer 0.8 s and 96 MB.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.block_hash import Origin, hash_chain
from octavo.errors import BadRequest, PromptTooLong
from octavo.request import MAX_PREDICTED, Adapter, Request
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.jobs import Asked, Prompt
from octavo_serve.api.model import NO_CLAIM, Claim
from octavo_serve.wire.messages import ModelInfo

LONG = 8192
"""Characters, or token ids, that take about 2 ms: as long as a few events on the loop."""
CHARACTERS_PER_TOKEN = 256
"""Characters per token that no text of a whole context exceeds on average; the longest tokens in use are 128 spaces."""
USUAL_CHARACTERS_PER_TOKEN = 8
"""Characters per token of the context above which a text is first counted in pieces, before it is tokenised whole."""
PIECE = 2**14
MAX_TOKENIZED = 2**18
"""Most characters for /tokenize, for any context: 0.4 s in the worst case."""


def is_long(prompts: Sequence[Prompt]) -> bool:
    """Whether `prepare` must run in a thread."""
    return sum(map(len, prompts)) >= LONG


def prepare(
    tokenizer: Tokenizer,
    info: ModelInfo,
    prompts: Sequence[Prompt],
    asked: Asked,
    request_id: str,
    adapter: Adapter | None = None,
    claim: Claim = NO_CLAIM,
) -> tuple[list[Request], list[str]]:
    """One request per prompt, and the prompts' texts if they are echoed.

    Args:
        request_id: unique; each request's id is this and the prompt's number.
        adapter: that the requests are computed with.
        claim: when their first tokens must come.

    Raises:
        PromptTooLong: the context cannot hold a prompt and the tokens asked for.
        BadRequest: a prompt is empty, or has a token id outside the vocabulary.
    """
    predicted = _predicted(tokenizer, asked.prediction) if asked.prediction else None
    requests = []
    for position, prompt in enumerate(prompts):
        token_ids = _token_ids(tokenizer, info, prompt, asked)[-(asked.truncate or 0) :]
        check_token_ids(token_ids, info.vocab_size, asked.param)
        check_length(len(token_ids), asked.max_tokens, info.max_model_len, asked.param)
        request = Request(
            request_id=f"{request_id}-{position}",
            prompt_token_ids=token_ids,
            params=asked.params,
            priority=asked.priority,
            session=asked.session,
            cache_salt=asked.cache_salt,
            adapter=adapter,
            asker=asked.asker,
            tenant=asked.tenant.name,
            weight=asked.tenant.weight,
            cache_share=asked.tenant.cache_share,
            predicted=predicted,
            deadline=claim.seconds_left,
        )
        root, turn = Origin.of(info.hash_name, adapter, asked.cache_salt, token_ids)
        request.block_hashes = hash_chain(root, token_ids, info.block_size, turn)
        requests.append(request)
    return requests, [_text(tokenizer, prompt) for prompt in prompts] if asked.echo else []


def _token_ids(tokenizer: Tokenizer, info: ModelInfo, prompt: Prompt, asked: Asked) -> list[int]:
    if not isinstance(prompt, str):
        check_length(len(prompt), asked.max_tokens, info.max_model_len, asked.param)  # before any loop over the ids
        return prompt
    if not prompt:
        return _new_text(tokenizer)
    check_characters(tokenizer, prompt, info.max_model_len, asked.param)
    for known in asked.known:
        if known and max(known) < info.vocab_size and (token_ids := _going_on(tokenizer, prompt, known)) is not None:
            return token_ids
    return tokenizer.encode(prompt, add_special_tokens=asked.add_special_tokens)


def _predicted(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of the beginning of what an answer is expected to be; MAX_FIELD_BYTES bounds the text."""
    return tokenizer.encode(text, add_special_tokens=False)[:MAX_PREDICTED]


def _going_on(tokenizer: Tokenizer, text: str, known: list[int]) -> list[int] | None:
    """Token ids of a text that begin with the known ones; None if these do not begin it.

    Earlier turns are so found in the cache token by token, although their text alone may give other tokens: a model
    does not write as its tokenizer cuts.
    """
    begin = tokenizer.decode(known, skip_special_tokens=False)
    if not text.startswith(begin):
        return None
    token_ids = known + tokenizer.encode(text[len(begin) :], add_special_tokens=False)
    same = tokenizer.decode(token_ids, skip_special_tokens=False) == text  # some tokenizers put a space before a text
    return token_ids if same else None


def _new_text(tokenizer: Tokenizer) -> list[int]:
    """Token ids of an empty prompt: the token that begins a text, or else one that ends the previous text."""
    begin = tokenizer.bos_token_id
    return [min(tokenizer.eos_token_ids) if begin is None else begin]


def _text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=False)


def check_characters(tokenizer: Tokenizer, text: str, max_model_len: int, param: str) -> None:
    """Refuse a text that is certainly longer than the context, without the cost of tokenising all of it."""
    if exceeds(tokenizer, text, max_model_len):
        raise _too_long(max_model_len, param)


def exceeds(tokenizer: Tokenizer, text: str, most: int) -> bool:
    """Whether a text certainly has more than `most` tokens, without the cost of tokenising all of it.

    A long text is tokenised in pieces until there are twice as many tokens. Cuts between pieces add a few tokens, but
    never double their number.
    """
    if len(text) <= most * USUAL_CHARACTERS_PER_TOKEN:
        return False
    if len(text) > most * CHARACTERS_PER_TOKEN:
        return True
    found = 0
    for start in range(0, len(text), PIECE):
        found += len(tokenizer.encode(text[start : start + PIECE], add_special_tokens=False))
        if found > 2 * most:
            return True
    return False


def check_tokenized(text: str, max_model_len: int, param: str) -> None:
    """Refuse texts that are too long for /tokenize, which accepts more than the context holds."""
    most = max(MAX_TOKENIZED, max_model_len * USUAL_CHARACTERS_PER_TOKEN)
    if len(text) > most:
        raise BadRequest(f"the text has {len(text)} characters; at most {most} are tokenised at once: split it", param)


def _too_long(max_model_len: int, param: str) -> PromptTooLong:
    return PromptTooLong(
        f"the prompt has more than {max_model_len} tokens; this model's context of {max_model_len} tokens must hold it "
        "and at least one more: shorten it",
        param,
    )


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Refuse ids outside the model's vocabulary."""
    if token_ids and max(token_ids) >= vocab_size:
        raise BadRequest(f"token id {max(token_ids)} is not in the vocabulary of {vocab_size} tokens", param)


def check_length(prompt_tokens: int, max_tokens: int | None, max_model_len: int, param: str) -> None:
    """Refuse a prompt, or a prompt with its `max_tokens`, that the model's context cannot hold."""
    if prompt_tokens == 0:
        raise BadRequest(f"{param} must not be empty", param)
    if prompt_tokens >= max_model_len + (max_tokens == 0):
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens; this model's context of {max_model_len} tokens must hold it"
            + ("" if max_tokens == 0 else " and at least one more")
            + ": shorten it",
            param,
        )
    if max_tokens is not None and prompt_tokens + max_tokens > max_model_len:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens and max_tokens asks for {max_tokens} more, but this model's "
            f"context holds {max_model_len}: ask for at most {max_model_len - prompt_tokens}",
            "max_tokens",
        )
