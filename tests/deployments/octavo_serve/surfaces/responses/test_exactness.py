"""A next turn finds the last one in the cache, token by token, whatever the model wrote: with a real engine."""

from __future__ import annotations

from typing import Any


def test_a_turn_is_found_in_the_cache(in_process: Any, api: Any) -> None:
    """The model writes random bytes, which are no text: as a text they would be other tokens."""
    api.service = in_process.service
    sampling = {"temperature": 1.0, "seed": 1}
    first = api.create("Hello, what is this?", max_output_tokens=200, **sampling)
    told = first["output"][0]["content"][0]["text"]
    tokenizer = in_process.service.models.find(None).tokenizer
    assert len(tokenizer.encode(told)) != first["usage"]["output_tokens"]
    second = api.create("And that?", max_output_tokens=8, previous_response_id=first["id"], **sampling)
    whole = first["usage"]["total_tokens"]
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= 0.95 * whole
    prompts = [request.prompt_token_ids for request in in_process.opened]
    assert prompts[1][: len(prompts[0])] == prompts[0]
