"""What a model's makers recommend is read from its files, and what is wrong there is a ModelError."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from octavo.errors import ModelError
from octavo.source import Source
from octavo.text.recommended import recommended_sampling


def directory(folder: Path, text: str) -> Source:
    (folder / "generation_config.json").write_text(text)
    return Source("it", folder, "hf")


def test_a_directory(tmp_path: Path) -> None:
    config = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 3, "min_p": None, "do_sample": True}
    found = recommended_sampling(directory(tmp_path, json.dumps(config)))
    assert found == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


def test_a_top_p_of_zero_is_greedy(tmp_path: Path) -> None:
    assert recommended_sampling(directory(tmp_path, '{"top_p": 0}'))["temperature"] == 0


def test_a_directory_that_says_nothing(tmp_path: Path) -> None:
    assert recommended_sampling(Source("it", tmp_path, "hf")) == {}
    assert recommended_sampling(directory(tmp_path, '{"eos_token_id": 3}')) == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", "7", "[" * 5000, '{"top_p": 7}', '{"temperature": "hot"}', '{"top_k": 1.5}']
)
def test_what_is_wrong_is_a_model_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError):
        recommended_sampling(directory(tmp_path, text))


def test_a_gguf_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_float32("general.sampling.temp", 0.7)
    writer.add_float32("general.sampling.penalty_repeat", 1.05)
    writer.add_int32("general.sampling.top_k", 64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = recommended_sampling(Source("it", tmp_path / "m.gguf", "gguf"))
    assert found == {"temperature": 0.7, "repetition_penalty": 1.05, "top_k": 64}
