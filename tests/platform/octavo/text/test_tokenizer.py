from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import BadRequest, ModelError
from octavo.source import Source
from octavo.text.tokenizer import Tokenizer, load_tokenizer


def hugging_face(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def load(folder: Path) -> Tokenizer:
    return load_tokenizer(Source(str(folder), folder, "hf"))


@pytest.fixture(scope="module", params=["tiny_tokenizer_dir", "sentencepiece_dir"])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    folder = request.getfixturevalue(request.param)
    return load(folder), hugging_face(folder)


def test_known_texts_encode_and_decode_as_in_transformers(pair, texts):
    ours, theirs = pair
    for text in texts:
        for add_special_tokens in (True, False):
            ids = ours.encode(text, add_special_tokens)
            assert ids == theirs.encode(text, add_special_tokens=add_special_tokens)
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=60), add_special_tokens=st.booleans())
def test_any_text_encodes_as_in_transformers(pair, text, add_special_tokens):
    ours, theirs = pair
    assert ours.encode(text, add_special_tokens) == theirs.encode(text, add_special_tokens=add_special_tokens)


@given(data=st.data())
def test_any_ids_decode_as_in_transformers(pair, data):
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=30))
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_sizes_and_special_tokens_as_in_transformers(pair):
    ours, theirs = pair
    assert ours.vocab_size == len(theirs)
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == {theirs.eos_token_id}
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template


@given(text=st.text())
def test_token_bytes_are_the_text(byte_level, text):
    ids = byte_level.encode(text, add_special_tokens=False)
    assert b"".join(map(byte_level.token_bytes, ids)) == text.encode()


@given(text=st.text(st.characters(blacklist_characters="▁<", blacklist_categories=["Cs"])))
def test_sentencepiece_token_bytes_are_the_text_after_its_first_space(sentencepiece, text):
    ids = sentencepiece.encode(text, add_special_tokens=False)
    assert b"".join(map(sentencepiece.token_bytes, ids)) == (b" " + text.encode() if text else b"")


def test_half_a_character_has_bytes_but_no_text(byte_level):
    ids = byte_level.encode("🙂", add_special_tokens=False)
    assert len(ids) > 1
    assert b"".join(map(byte_level.token_bytes, ids)) == "🙂".encode()
    assert "\ufffd" in byte_level.token_text(ids[0])


def test_byte_fallback_tokens(sentencepiece):
    ids = sentencepiece.encode("🙂", add_special_tokens=False)
    assert [sentencepiece.token_bytes(i) for i in ids[1:]] == [b"\xf0", b"\x9f", b"\x99", b"\x82"]
    assert [sentencepiece.is_byte_token(i) for i in ids] == [False, True, True, True, True]


def test_token_text_keeps_the_leading_space(byte_level, sentencepiece):
    for tokenizer in (byte_level, sentencepiece):
        ids = tokenizer.encode("a dog", add_special_tokens=False)
        assert "".join(map(tokenizer.token_text, ids)).endswith("a dog")
    assert byte_level.token_text(2) == "<|im_end|>"


def test_ids_outside_the_vocabulary_decode_to_nothing(byte_level):
    assert byte_level.decode([byte_level.vocab_size + 7]) == ""
    assert byte_level.token_bytes(byte_level.vocab_size + 7) == b""
    assert byte_level.token_text(-1) == ""


@pytest.mark.parametrize("token_id", [-1, 2**40])
def test_impossible_ids_are_the_senders_fault(byte_level, token_id):
    with pytest.raises(BadRequest, match="token ids must be at least 0 and less than 400"):
        byte_level.decode([token_id])


def test_lone_surrogates_are_the_senders_fault(byte_level):
    with pytest.raises(BadRequest, match="character 2 is half of a surrogate pair"):
        byte_level.encode("ab\ud83dcd")


def copy_with(folder: Path, target: Path, **files: Any) -> Path:
    """A copy of a directory with keys added to (or, where None, taken from) its JSON files."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    for stem, changes in files.items():
        path = target / f"{stem}.json"
        content = (json.loads(path.read_text()) if path.is_file() else {}) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return target


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True},
                                   {"add_bos_token": True, "add_eos_token": True}])  # fmt: skip
@pytest.mark.parametrize("name", ["tiny_tokenizer_dir", "sentencepiece_dir"])
def test_flags_beside_tokenizer_json_are_ignored_as_in_transformers(name, flags, request, tmp_path):
    folder = copy_with(request.getfixturevalue(name), tmp_path, tokenizer_config=flags)
    ours, theirs = load(folder), hugging_face(folder)
    for text in ("hello", ""):
        assert ours.encode(text) == theirs.encode(text)


def test_tokens_that_only_the_config_knows(tiny_tokenizer_dir, tmp_path):
    extra = {"content": "<tool>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    config = {"added_tokens_decoder": {"400": {**extra, "special": True}}, "pad_token": "<pad>"}
    folder = copy_with(tiny_tokenizer_dir, tmp_path, tokenizer_config=config)
    ours, theirs = load(folder), hugging_face(folder)
    text = "a <tool> b <pad>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert ours.vocab_size == len(theirs) == 402


def test_special_tokens_written_as_objects(tiny_tokenizer_dir, tmp_path):
    config = {"eos_token": {"content": "<|endoftext|>", "__type": "AddedToken", "special": True}}
    assert load(copy_with(tiny_tokenizer_dir, tmp_path, tokenizer_config=config)).eos_token_ids == {0}


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        ({}, {}, {2}),
        ({"eos_token_id": 7}, {}, {2, 7}),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 9}, {2, 7, 8, 9}),
        ({}, {"text_config": {"eos_token_id": [5]}}, {2, 5}),
    ],
)
def test_end_tokens_are_gathered(generation_config, config, expected, tiny_tokenizer_dir, tmp_path):
    folder = copy_with(tiny_tokenizer_dir, tmp_path, generation_config=generation_config, config=config)
    assert load(folder).eos_token_ids == expected


def test_named_chat_templates_and_template_files(tiny_tokenizer_dir, tmp_path):
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    folder = copy_with(tiny_tokenizer_dir, tmp_path, tokenizer_config={"chat_template": named})
    assert load(folder).chat_templates == {"default": "A", "tool_use": "B"}
    (folder / "chat_template.jinja").write_text("C")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("D")
    assert load(folder).chat_templates == {"default": "C", "tool_use": "B", "rag": "D"}
    assert load(folder).chat_template == hugging_face(folder).chat_template["default"] == "C"


def test_truncation_and_padding_settings_do_not_apply(tiny_tokenizer_dir, tmp_path):
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    folder = copy_with(tiny_tokenizer_dir, tmp_path, tokenizer={"truncation": truncation, "padding": padding})
    assert load(folder).decode(load(folder).encode("a longer text")) == "a longer text"


def test_directory_without_tokenizer_json(tmp_path):
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_named(name, tiny_tokenizer_dir, tmp_path):
    folder = copy_with(tiny_tokenizer_dir, tmp_path)
    (folder / name).write_text('{"cut": ')
    with pytest.raises(ModelError, match=name):
        load(folder)


def test_a_pattern_that_gives_up_on_a_text_is_the_models_fault(tiny_tokenizer_dir, tmp_path):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "model")
    path = folder / "tokenizer.json"
    cut = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": cut}))
    tokenizer = load_tokenizer(Source(str(folder), folder, "hf"))
    with pytest.raises(ModelError, match="the model's tokenizer is damaged or cannot be read"):
        tokenizer.encode("a" * 40 + "!")


def test_text_loads_nothing_slow():
    code = (
        "import sys, octavo.text.tokenizer, octavo.text.chat, octavo.text.output;"
        "print(sorted({'torch', 'transformers', 'numpy', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing", "TemplateProcessing", None])
def test_pairs_as_in_transformers(kind, tiny_tokenizer_dir, tmp_path):
    stored = json.loads((tiny_tokenizer_dir / "tokenizer.json").read_text())
    name, token_id = next((name, i) for name, i in stored["model"]["vocab"].items())
    ends: dict[str, Any] = {"type": kind, "sep": [name, token_id], "cls": [name, token_id]}
    piece = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": text, "type_id": kind}} for kind, text in enumerate("AB"))
    template = {
        "type": kind,
        "single": [piece, first],
        "pair": [piece, first, piece, piece, second],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
    }
    more = {"RobertaProcessing": {"trim_offsets": True, "add_prefix_space": False}}.get(str(kind), {})
    stored["post_processor"] = None if kind is None else template if kind == "TemplateProcessing" else ends | more
    folder = copy_with(tiny_tokenizer_dir, tmp_path / "pairs", tokenizer=stored)
    ours, theirs = load(folder), hugging_face(folder)
    for a, b in (("Hello there", "world"), ("Hello", ""), ("", "world"), ("", "")):
        ids, start = ours.encode_pair(a, b)
        read = theirs([(a, b)])  # alone it takes an empty second text for none
        assert ids == read.input_ids[0]
        of = read.sequence_ids(0)
        assert of[start:].count(1) == of.count(1)
        assert of[:start].count(0) == of.count(0)
        assert not b or of[start] == 1
    with pytest.raises(BadRequest, match="not valid Unicode"):
        ours.encode_pair("a", "\ud800")


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_pairs_are_cut_as_in_transformers(tiny_encoder, kind):
    ours, theirs = load(tiny_encoder(kind)), hugging_face(tiny_encoder(kind))
    texts = ["", "a", "abc de", "the longer of the two texts by far", "x" * 40]
    for first, second in itertools.product(texts, texts):
        for most in (6, 7, 9, 16, 17, 60):
            ids, start = ours.encode_pair(first, second, most)
            read = theirs([(first, second)], truncation="longest_first", max_length=most)
            assert ids == read.input_ids[0], (first, second, most)
            assert read.sequence_ids(0)[:start].count(1) == 0
            assert read.sequence_ids(0)[start:].count(0) == 0
        assert ours.encode_pair(first, second) == ours.encode_pair(first, second, 1000)
    assert ours.has_types == (kind == "bert")
    with pytest.raises(BadRequest, match=r"take [34] special tokens: keep at least [56]"):
        ours.encode_pair("a", "b", 4)


def test_a_model_that_takes_no_token_types_gets_none(tiny_encoder, tmp_path):
    stored = {"model_input_names": ["input_ids", "attention_mask"]}
    folder = copy_with(tiny_encoder("bert"), tmp_path / "untyped", tokenizer_config=stored)
    assert not load(folder).has_types
