"""Requests that can never run are refused before they take any room."""

from __future__ import annotations

import pytest

from octavo.errors import BadRequest, PromptTooLong


@pytest.mark.parametrize("emitted", [[], [None], [[1], [2]], [[1] * 12], [[5000]]], ids=str)
def test_emitted_tokens_must_be_what_a_shard_could_have_said(fake, emitted):
    request = fake.request("a", [1, 2], max_tokens=12)
    request.emitted = emitted
    with pytest.raises(BadRequest, match="emitted"):
        fake.engine().add(request)


@pytest.mark.parametrize(
    ("prompt", "params", "error"),
    [
        ([], {}, "empty"),
        ([1000], {}, "token ids must be in"),
        ([-1], {}, "token ids must be in"),
        ([1] * 4096, {}, "context is"),
        ([1], {"min_tokens": 2, "stop_token_ids": list(range(1000))}, "nothing to draw"),
        ([1], {"logit_bias": {1000: 1.0}}, "logit_bias"),
        ([1], {"stop_token_ids": [1000]}, "stop_token_ids"),
        ([1], {"logprob_token_ids": [1000]}, "logprob_token_ids"),
    ],
)
def test_what_can_never_run_is_refused(fake, prompt, params, error):
    engine = fake.engine(num_blocks=2048)
    with pytest.raises(BadRequest, match=error) as raised:
        engine.add(fake.request("a", prompt, **params))
    assert isinstance(raised.value, PromptTooLong) == (error == "context is")
    assert not engine.has_work
