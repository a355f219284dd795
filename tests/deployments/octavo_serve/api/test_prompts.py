from __future__ import annotations

from typing import Any

import pytest

from octavo.block_hash import hash_chain, root_hash
from octavo.errors import BadRequest, PromptTooLong
from octavo.request import SamplingParams
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.jobs import Asked
from octavo_serve.api.prompts import check_characters, check_length, check_tokenized, is_long, prepare
from octavo_serve.wire.messages import ModelInfo

INFO = ModelInfo("tiny", max_model_len=256, vocab_size=49152, block_size=16)


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.characters = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.characters += len(text)
        return self.tokenizer.encode(text, add_special_tokens)


def asked(**changes: Any) -> Asked:
    defaults: dict[str, Any] = {
        "kind": "cmpl", "model": None, "content": [], "param": "prompt", "params": SamplingParams(), "max_tokens": 16,
    }  # fmt: skip
    return Asked(**defaults | changes)


def test_texts_and_ids_become_requests(tokenizer: Tokenizer) -> None:
    text = "Hello there, how are you today? " * 4
    ids = tokenizer.encode(text)
    requests, texts = prepare(tokenizer, INFO, [text, ids], asked(cache_salt="tenant", echo=True, priority=3), "r")
    assert [request.request_id for request in requests] == ["r-0", "r-1"]
    assert [request.prompt_token_ids for request in requests] == [ids, ids]
    chain = hash_chain(root_hash("tiny", salt="tenant"), ids, 16)
    assert [request.block_hashes for request in requests] == [chain, chain]
    assert (len(chain) > 1, requests[0].priority, texts) == (True, 3, [text, text])


def test_a_text_far_too_long_costs_no_tokens(tokenizer: Tokenizer) -> None:
    counting: Any = Counting(tokenizer)
    with pytest.raises(PromptTooLong, match="more than 256 tokens; this model's context of 256 tokens"):
        prepare(counting, INFO, ["7" * 10**6], asked(), "r")
    assert counting.characters == 0


def test_a_text_too_long_costs_few_tokens(tokenizer: Tokenizer) -> None:
    counting: Any = Counting(tokenizer)
    with pytest.raises(PromptTooLong, match="more than 256 tokens"):
        prepare(counting, INFO, ["7" * 60_000], asked(), "r")
    assert counting.characters <= 2**14


@pytest.mark.parametrize("text", ["word " * 200, " " * 20_000, "=" * 4000, "\n" * 10_000])
def test_a_text_that_fits_is_taken_however_long(tokenizer: Tokenizer, text: str) -> None:
    length = len(tokenizer.encode(text))
    info = ModelInfo("tiny", max_model_len=length + 1, vocab_size=49152, block_size=16)
    check_characters(tokenizer, text, info.max_model_len, "prompt")
    (request,), _ = prepare(tokenizer, info, [text], asked(max_tokens=1), "r")
    assert len(request.prompt_token_ids) == length


def test_ids_beyond_the_context_are_not_looked_at(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptTooLong, match="the prompt has 1000000 tokens"):
        prepare(tokenizer, INFO, [[10**9] * 10**6], asked(), "r")


def test_what_tokenize_takes() -> None:
    check_tokenized("a" * 2**18, 256, "prompt")
    with pytest.raises(BadRequest, match="at most 262144 are tokenised at once"):
        check_tokenized("a" * (2**18 + 1), 256, "prompt")


def test_what_is_long() -> None:
    assert not is_long(["a" * 100, [1] * 100])
    assert is_long(["a" * 100] * 100)
    assert is_long([[1] * 8192])


def test_lengths() -> None:
    check_length(10, 6, 16, "prompt")
    with pytest.raises(PromptTooLong, match="ask for at most 6"):
        check_length(10, 7, 16, "prompt")
    with pytest.raises(PromptTooLong, match="shorten it"):
        check_length(16, None, 16, "prompt")


def test_a_prompt_goes_on_from_known_tokens(tokenizer: Tokenizer) -> None:
    text = "Paris. And Rome?"
    usual = tokenizer.encode(text, add_special_tokens=False)
    known = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "Paris."]
    for begins, expected in (
        ([known], known + tokenizer.encode(" And Rome?", add_special_tokens=False)),
        ([[*known, 0], known], known + tokenizer.encode(" And Rome?", add_special_tokens=False)),
        ([[*known, 0]], usual),
        ([[]], usual),
        ([[tokenizer.vocab_size]], usual),
    ):
        asking = asked(known=begins, add_special_tokens=False)
        (request,), _ = prepare(tokenizer, INFO, [text], asking, "x")
        assert request.prompt_token_ids == expected
