"""Large answers as JSON."""

from __future__ import annotations

import msgspec
import pytest

from octavo_serve.api.surface import to_json
from octavo_serve.surfaces.openai.framing import to_json_in_slices


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_an_answer_in_slices_is_the_same_answer(count: int) -> None:
    top = [{"a": -0.5, "é": -1.0}] * count
    logprobs = {"tokens": ["a"] * count, "top_logprobs": top, "token_logprobs": [None, *[-0.5] * count]}
    of_prompt = [None, *[{"7": {"rank": 1}}] * count]
    choice = {"index": 0, "text": 'a"é\n', "logprobs": logprobs, "prompt_logprobs": of_prompt}
    for answer in (
        {"id": "x", "choices": [choice] * 3, "usage": {"prompt_tokens": 7}},
        {"id": "x", "choices": [], "usage": None},
        {"choices": [{"logprobs": {"content": top, "refusal": None}}], "prompt_logprobs": top},
    ):
        assert to_json_in_slices(answer) == to_json(answer)
        assert msgspec.json.decode(to_json_in_slices(answer)) == answer
