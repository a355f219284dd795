"""Prompts that share a state."""

from __future__ import annotations

import pytest

from octavo.block_hash import Origin, hash_chain, root_hash
from octavo.errors import BadRequest
from octavo.request import Adapter, SamplingParams
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.jobs import Asked
from octavo_serve.surfaces.decisions.forks import Forks, forks_of
from octavo_serve.surfaces.decisions.questions import Option, Question
from octavo_serve.surfaces.decisions.state import Frame
from octavo_serve.wire.messages import ModelInfo

FRAME = Frame("<|im_start|>user\n" + "A long story. " * 20 + "\n\n", "<|im_end|>\n<|im_start|>assistant\n")
YES = Question("predicate", "questions[0]", "It is long.")
MANY = Question("choice", "questions[1]", "Which?", tuple(Option(f"o{i}") for i in range(35)))


def forks(
    tokenizer: Tokenizer, *questions: Question, before: str = FRAME.before, adapter: Adapter | None = None
) -> Forks:
    asked = Asked(kind="d", model=None, content=["x"], param="input", params=SamplingParams(), cache_salt="s")
    info = ModelInfo("m", max_model_len=2048, vocab_size=tokenizer.vocab_size, block_size=16)
    return forks_of(tokenizer, info, Frame(before, FRAME.after), questions, asked, "d-1", adapter)


def test_a_prompt_is_the_state_and_the_question(tokenizer: Tokenizer) -> None:
    found = forks(tokenizer, YES)
    request = found.request(found.first(0), "0")
    text = tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)
    assert text == FRAME.before + YES.head(found.labels[0]) + YES.text(found.labels[0]) + FRAME.after
    state = tokenizer.encode(FRAME.before, add_special_tokens=False)
    assert request.prompt_token_ids[: len(state)] == state == found.state.token_ids
    assert request.params.logprob_token_ids == list(found.labels[0].groups)
    assert (request.request_id, request.cache_salt, request.session) == ("d-1-0", "s", "d-1")


def test_hashes_are_those_of_the_whole_prompt(tokenizer: Tokenizer) -> None:
    found = forks(tokenizer, YES, MANY)
    prefixes = [found.prefix_request(prefix, "p") for prefix in (found.state, *found.heads)]
    for request in (*prefixes, found.request(found.first(0), "0"), found.request(found.seconds(1)[3], "1")):
        assert request.block_hashes == hash_chain(root_hash("m", salt="s"), request.prompt_token_ids, 16)


def test_an_adapter_that_begins_late_leaves_what_is_shared_to_the_model(tokenizer: Tokenizer) -> None:
    plain = forks(tokenizer, YES)
    fork = plain.first(0)
    late = Adapter("late", "digest", "", tuple(fork.token_ids[:9]))
    found = forks(tokenizer, YES, adapter=late)
    own, theirs = (each.request(fork, "0") for each in (plain, found))
    root, turn = Origin.of("m", late, "s", theirs.prompt_token_ids)
    assert theirs.block_hashes == hash_chain(root, theirs.prompt_token_ids, 16, turn)
    shared = len(found.state.chain)
    assert theirs.block_hashes[:shared] == own.block_hashes[:shared] == found.state.chain
    assert own.block_hashes[-1] != theirs.block_hashes[-1]


def test_labels_of_two_tokens_fork_after_the_first(tokenizer: Tokenizer) -> None:
    found = forks(tokenizer, YES, MANY)
    assert found.seconds(0) == []
    seconds = found.seconds(1)
    assert [fork.token_ids[-1] for fork in seconds] == list(found.labels[1].groups)
    assert [len(fork.candidates) for fork in seconds] == [10, 10, 10, 5]
    assert all(fork.token_ids[:-1] == found.suffixes[1] for fork in seconds)


def test_what_several_prompts_share_is_computed_first(tokenizer: Tokenizer) -> None:
    assert forks(tokenizer, YES).shared == []
    one = forks(tokenizer, YES, YES)
    assert one.shared == [[one.heads[0]]]
    assert one.heads[0] is one.heads[1]
    two = forks(tokenizer, YES, MANY)
    assert two.shared == [[two.state], [two.heads[1]]]  # of a single prompt nothing but the state is shared
    three = forks(tokenizer, YES, MANY, YES)
    assert three.shared == [[three.state], three.heads[:2]]


def test_no_less_than_a_block_is_shared(tokenizer: Tokenizer) -> None:
    found = forks(tokenizer, YES, MANY, before="<|im_start|>user\n")
    assert found.state.chain == []
    assert found.shared == [[found.heads[1]]]


def test_tokens_are_counted_once(tokenizer: Tokenizer) -> None:
    found = forks(tokenizer, YES, YES, MANY)
    heads = [len(head.token_ids) - len(found.state.token_ids) for head in found.heads[1:]]
    suffixes = 2 * len(found.suffixes[0]) + len(found.suffixes[2])
    assert found.prompt_tokens == len(found.state.token_ids) + sum(heads) + suffixes


def test_too_many_prompts_are_refused_before_any_is_made(tokenizer: Tokenizer) -> None:
    with pytest.raises(BadRequest, match="take 4100 prompts; at most 4096"):
        forks(tokenizer, *[MANY] * 820)
