"""What gateways and shards say to each other, as bytes and back."""

from __future__ import annotations

import pytest

from octavo.errors import BadRequest, EngineDead, OctavoError, Overloaded
from octavo.request import Logprob, SequenceUpdate
from octavo_serve.shard.port import STEP
from octavo_serve.wire.messages import MAX_MESSAGE, TO_GATEWAY, Refusal, Step, encode


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


def test_a_step_is_no_longer_than_a_message_may_be() -> None:
    entries = [{token: Logprob(-12.3456789, token) for token in range(2**31 - 21, 2**31)}]
    update = SequenceUpdate("a" * 128, 0, [2**31 - 1], entries, cumulative_logprob=-1.5, time=1e6)
    assert len(encode(Step([update] * STEP))) < MAX_MESSAGE / 2
