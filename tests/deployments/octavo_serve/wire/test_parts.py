"""Long requests and answers in parts: what comes out is what went in, and no part is long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.pooling import Pooling
from octavo.request import Logprob, PackedLogprobs, Request, SamplingParams, SequenceUpdate
from octavo_serve.wire import parts
from octavo_serve.wire.messages import MAX_MESSAGE, TO_GATEWAY, TO_SHARD, PromptPart, RequestPart, Submit, encode
from octavo_serve.wire.parts import PART_TOKENS, PART_VALUES, Arriving, is_long, logprob_parts, request_parts, steps

LENGTHS = st.sampled_from([0, 1, PART_TOKENS - 1, PART_TOKENS, PART_TOKENS + 1, 3 * PART_TOKENS])


def arrived(request: Request, arriving: Arriving) -> Request:
    for encoded in request_parts(request):
        assert len(encoded) < MAX_MESSAGE
        message = TO_SHARD.decode(encoded)
        if isinstance(message, Submit):
            return arriving.complete(message.request)
        assert isinstance(message, RequestPart)
        arriving.add(message)
    raise AssertionError("no Submit")


@given(
    st.integers(1, 3 * PART_TOKENS),
    st.none() | st.lists(st.none() | LENGTHS, min_size=1, max_size=3),
    st.none() | st.integers(0, 9000),
)
def test_a_request_arrives_as_it_was(prompt: int, emitted: list[int | None] | None, hashes: int | None) -> None:
    tokens = None if emitted is None else [None if n is None else list(range(n)) for n in emitted]
    request = Request(request_id="a", prompt_token_ids=list(range(prompt)), emitted=tokens, session="s")
    request.pooling = Pooling("classify", 1) if prompt % 2 else None
    request.block_hashes = None if hashes is None else [number.to_bytes(16, "big") for number in range(hashes)]
    arriving = Arriving()
    assert arrived(request, arriving) == request
    assert arriving._parts == {}
    assert is_long(request) == (prompt + sum(n or 0 for n in emitted or ()) > PART_TOKENS)


def test_what_is_dropped_leaves_nothing_behind() -> None:
    arriving = Arriving()
    for name in ("kept", "dropped"):
        arriving.add(RequestPart(name, None, [1, 2]))
        arriving.add(RequestPart(name, None, [3]))
    arriving.drop("dropped")
    arriving.drop("unknown")
    assert list(arriving._parts) == ["kept"]
    assert arriving.complete(Request(request_id="kept", prompt_token_ids=[])).prompt_token_ids == [1, 2, 3]


def test_what_cannot_be_encoded_is_said_before_the_first_part() -> None:
    request = Request(request_id="a", prompt_token_ids=[1] * 2 * PART_TOKENS, params=SamplingParams())
    request.params.top_k = 2**70
    with pytest.raises(OverflowError):
        request_parts(request)


@given(st.integers(0, 40), st.integers(1, 21), st.integers(1, 100))
def test_log_probabilities_arrive_as_they_were(tokens: int, width: int, part: int) -> None:
    packed, joined = PackedLogprobs(), PackedLogprobs()
    for token in range(tokens):
        packed.add(range(token, token + width), [-0.5 * place for place in range(width)], token + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_VALUES", part)
        for encoded in logprob_parts("a", packed):
            message = TO_GATEWAY.decode(encoded)
            assert isinstance(message, PromptPart)
            assert message.logprobs.num_values <= max(part, width)
            joined.extend(message.logprobs)
    assert list(joined) == list(packed)
    assert len(joined) == len(list(joined)) == tokens + 1


def test_a_part_is_short() -> None:
    packed = PackedLogprobs()
    for token in range(PART_VALUES):
        packed.add([2**31 - 1] * 2, [-0.1] * 2, token)
    sizes = [len(part) for part in logprob_parts("a" * 64, packed)]
    assert len(sizes) == 2
    assert max(sizes) < 2**19


@pytest.mark.parametrize(("count", "tokens", "width", "prompt"), [
    (0, 1, 0, 0), (1, 1, 0, 0), (256, 1, 0, 0), (256, 1, 21, 0), (256, 6, 21, 0), (3000, 1, 0, 0), (20, 1, 0, 1500),
    (1, 400, 21, 0), (3, 400, 21, 1500),
])  # fmt: skip
def test_the_updates_of_a_step_are_cut_where_a_message_would_be_too_long(
    count: int, tokens: int, width: int, prompt: int
) -> None:
    packed = PackedLogprobs()
    for token in range(prompt):
        packed.add([token] * 21, [-1.5] * 21, 1)
    entries = [{token: Logprob(-12.3456789, token) for token in range(2**31 - width, 2**31)}] * tokens
    updates = [
        SequenceUpdate(
            "a" * 40, index, [2**31 - 1] * tokens, entries if width else None, -1.5, time=1e6,
            finish_reason="error", stop_reason="s" * 200, prompt_logprobs=packed if prompt else None,
        )
        for index in range(count)
    ]  # fmt: skip
    messages = list(steps(updates))
    assert [update for message in messages for update in message.updates] == updates
    sizes = [len(encode(message)) for message in messages]
    assert max(sizes, default=0) < MAX_MESSAGE
    assert bool(messages) == bool(updates)
    assert len(sizes) <= 1 + sum(sizes) // 2**17


@given(st.lists(st.sampled_from([0, 4, 3000, 2**14, 2**20 - 1000]), max_size=60))
def test_vectors_arrive_as_they_were_in_messages_that_are_not_too_long(sizes: list[int]) -> None:
    updates = [
        SequenceUpdate(str(i), 0, [], finish_reason="stop", pooled=bytes([i]) * size) for i, size in enumerate(sizes)
    ]
    encoded = [encode(step) for step in steps(updates)]
    assert all(len(each) < MAX_MESSAGE for each in encoded)
    assert [update for each in encoded for update in TO_GATEWAY.decode(each).updates] == updates  # type: ignore[union-attr]
    assert len(encoded) <= 1 + sum(sizes) // 2**18
