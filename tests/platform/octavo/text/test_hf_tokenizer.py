"""Tokens and flags that only the files beside tokenizer.json know, with transformers as the oracle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from octavo.source import Source
from octavo.text.tokenizer import Tokenizer, load_tokenizer

TEXT = "a<tool>b <tool> c<think>d</think>\n<|im_end|><extra> hello<pad>"


def token(content: str, **flags: bool) -> dict[str, Any]:
    off = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"content": content} | off | flags


CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "additional": {CONFIG: {"additional_special_tokens": ["<tool>", "<think>"]}},
    "extra": {CONFIG: {"extra_special_tokens": ["<tool>"], "additional_special_tokens": ["<think>"]}},
    "extra with names": {CONFIG: {"extra_special_tokens": {"tool_token": "<tool>"}}},
    "named by the model": {CONFIG: {"tool_token": "<tool>", "pad_token": "<pad>"}},
    "objects": {CONFIG: {"additional_special_tokens": [token("<tool>", lstrip=True) | {"__type": "AddedToken"}]}},
    "special in the config": {CONFIG: {"added_tokens_decoder": {"400": token("<tool>", special=True)}}},
    "not special in the config": {CONFIG: {"added_tokens_decoder": {"2": token("<|im_end|>"), "0": token("<x>")}}},
    "strips": {CONFIG: {"added_tokens_decoder": {"400": token("<tool>", lstrip=True, rstrip=True)}}},
    "named and not special": {
        CONFIG: {"pad_token": "<pad>", "added_tokens_decoder": {"400": token("<pad>"), "401": token("<tool>")}}
    },
    "map": {MAP: {"additional_special_tokens": ["<tool>"], "pad_token": "<pad>"}},
    "map beside a list": {
        CONFIG: {"added_tokens_decoder": {"400": token("<think>")}},
        MAP: {"additional_special_tokens": ["<tool>"]},
    },
    "map over config": {CONFIG: {"pad_token": "<extra>"}, MAP: {"pad_token": "<pad>"}},
    "map of objects": {MAP: {"pad_token": token("<pad>", lstrip=True)}},
    "older file": {
        CONFIG: {"additional_special_tokens": ["<tool>"]},
        "added_tokens.json": {"<think>": 401, "<tool>": 400},
    },
}


def write(folder: Path, files: dict[str, dict[str, Any]]) -> Path:
    for name, content in files.items():
        path = folder / name
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(before | content))
    return folder


def load(folder: Path) -> Tokenizer:
    return load_tokenizer(Source(str(folder), folder, "hf"))


def assert_as_in_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load(folder), AutoTokenizer.from_pretrained(str(folder))
    ids = ours.encode(TEXT)
    assert ids == theirs.encode(TEXT)
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("name", CASES)
def test_tokens_beside_tokenizer_json_are_as_in_transformers(name, tiny_tokenizer_dir, tmp_path):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "model")
    assert_as_in_transformers(write(folder, CASES[name]))


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("prefix", [None, True, False])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_spaces_of_llama_2_are_as_in_transformers(name, legacy, prefix, sentencepiece_dir, tmp_path, texts):
    from transformers import AutoTokenizer

    folder = shutil.copytree(sentencepiece_dir, tmp_path / "model")
    settings = {"tokenizer_class": name, "legacy": legacy, "add_prefix_space": prefix, "add_bos_token": True}
    write(folder, {CONFIG: {key: value for key, value in settings.items() if value is not None}})
    ours, theirs = load(folder), AutoTokenizer.from_pretrained(str(folder))
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("model_type", ["llama", "mistral", "mixtral"])
@pytest.mark.parametrize("which", ["sentencepiece_dir", "tiny_tokenizer_dir"])
def test_llamas_spaces_are_for_llama_vocabularies(model_type, which, request, tmp_path, texts):
    from transformers import AutoTokenizer

    folder = shutil.copytree(request.getfixturevalue(which), tmp_path / "model")
    write(folder, {CONFIG: {"tokenizer_class": "LlamaTokenizer"}, "config.json": {"model_type": model_type}})
    ours, theirs = load(folder), AutoTokenizer.from_pretrained(str(folder))
    for text in texts:
        assert ours.encode(text) == theirs.encode(text), text


def test_the_configs_flag_wins_over_tokenizer_jsons(tiny_tokenizer_dir, tmp_path):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "model")
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    described["added_tokens"].append({"id": 400, **token("<tool>")})
    path.write_text(json.dumps(described))
    write(folder, {CONFIG: {"added_tokens_decoder": {"400": token("<tool>", special=True)}}})
    assert_as_in_transformers(folder)
    tokenizer = load(folder)
    assert tokenizer.is_special(400)
    assert tokenizer.decode(tokenizer.encode("a<tool>b")) == "ab"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {CONFIG: {"eos_token": "<tool>"}},
        {MAP: {"eos_token": token("<tool>", lstrip=True)}},
        {"added_tokens.json": {"<tool>": 400, "<think>": 401}},
        {CONFIG: {"additional_special_tokens": ["<tool>"]}, "added_tokens.json": {"<tool>": 400}},
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_flags_of_tokenizer_json_without_a_list_in_the_config(tiny_tokenizer_dir, tmp_path, files, special):
    """A token with a name is special whatever tokenizer.json says, and the older file changes no flag of its tokens."""
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "model")
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    described["added_tokens"] = [{**entry, "special": special} for entry in described["added_tokens"]]
    described["added_tokens"].append({"id": 400, **token("<tool>", special=special)})
    path.write_text(json.dumps(described))
    assert_as_in_transformers(write(folder, files))


def test_a_response_template_is_read_as_it_is(tiny_tokenizer_dir, tmp_path):
    template = {"fields": {"content": {}}}
    folder = tmp_path / "copy"
    shutil.copytree(tiny_tokenizer_dir, folder)
    assert load(folder).response_template is None
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"response_template": template}))
    assert load(folder).response_template == template
