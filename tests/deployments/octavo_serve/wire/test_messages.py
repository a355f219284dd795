"""What gateways and shards say to each other, as bytes and back."""

from __future__ import annotations

import pytest

from octavo.engine.engine import MAX_TICKETS
from octavo.errors import BadRequest, EngineDead, OctavoError, Overloaded
from octavo.request import (
    MAX_LOGIT_BIAS,
    MAX_N,
    MAX_STOP,
    MAX_STOP_LENGTH,
    MAX_STOP_TOKEN_IDS,
    MAX_TOKEN_ID,
    Request,
    SamplingParams,
)
from octavo_serve.api.bounds import MAX_NAME
from octavo_serve.wire.messages import MAX_MESSAGE, TO_GATEWAY, TO_SHARD, Refusal, Report, Submit, encode
from octavo_serve.wire.parts import PART_TOKENS, is_long


@pytest.mark.parametrize(
    "error",
    [BadRequest("must be positive", "top_k"), Overloaded("all places are taken", retry_after=2.5), EngineDead("gone")],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_is_raised_as_it_was(error: OctavoError) -> None:
    message = TO_GATEWAY.decode(encode(Refusal.of("a", error)))
    assert isinstance(message, Refusal)
    found = message.error()
    assert (type(found), found.args, vars(found)) == (type(error), error.args, vars(error))


def test_any_other_error_comes_as_a_sentence_of_ours() -> None:
    found = Refusal.of("a", ZeroDivisionError("division by zero")).error()
    assert type(found) is OctavoError
    assert str(found) == "ZeroDivisionError: division by zero"


def test_an_error_of_an_unknown_kind_makes_no_other_class_than_ours() -> None:
    assert type(Refusal("a", "SystemExit", ()).error()) is OctavoError


def test_a_refusal_of_any_length_is_a_message() -> None:
    for error in (ValueError("x" * MAX_MESSAGE), EngineDead("x" * MAX_MESSAGE)):
        assert len(encode(Refusal.of("a", error))) < MAX_MESSAGE / 2


def test_all_tickets_are_a_message() -> None:
    ticket = "chat-" + "f" * 24 + "-100000"
    assert len(encode(Report(2**40, tickets=[ticket] * MAX_TICKETS))) < MAX_MESSAGE


def test_the_largest_request_that_does_not_go_in_parts_is_a_message() -> None:
    """As four-byte characters, 9-byte numbers, with a hash for each token, or so many sequences with a token each."""
    name, wide = "\U0001f600" * MAX_NAME, range(MAX_TOKEN_ID - MAX_STOP_TOKEN_IDS, MAX_TOKEN_ID)
    params = SamplingParams(
        n=MAX_N, stop=["\U0001f600" * MAX_STOP_LENGTH] * MAX_STOP, stop_token_ids=[*wide],
        logit_bias=dict.fromkeys(range(MAX_TOKEN_ID - MAX_LOGIT_BIAS, MAX_TOKEN_ID), 99.123456789),
    )  # fmt: skip
    emitted: list[list[int] | None] = [[MAX_TOKEN_ID] * (PART_TOKENS // 2 // MAX_N)] * MAX_N
    prompt = PART_TOKENS - sum(len(tokens or ()) for tokens in emitted)
    request = Request(
        request_id=name, prompt_token_ids=[MAX_TOKEN_ID] * prompt, params=params, cache_salt=name, session=name,
        block_hashes=[bytes(16)] * prompt, emitted=emitted, tenant=name, weight=0.1, deadline=0.3,
    )  # fmt: skip
    assert not is_long(request)
    assert len(encoded := encode(Submit(request))) < MAX_MESSAGE
    assert TO_SHARD.decode(encoded) == Submit(request)
