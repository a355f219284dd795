from __future__ import annotations

import json

import numpy as np
import pytest
from llguidance import LLMatcher
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from octavo.errors import ModelError
from octavo.text.grammars.tokens import Vocabulary
from octavo.text.parts import TokenizerParts
from octavo.text.tokenizer import Tokenizer


@pytest.fixture(params=["byte_level", "sentencepiece", "smollm2"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


def allowed(matcher: LLMatcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")).tolist()


def test_its_tokens_are_the_tokenizers(tokenizer):
    trie = Vocabulary(tokenizer, tokenizer.vocab_size + 77).trie()
    assert trie.vocab_size == tokenizer.vocab_size + 77
    assert trie.is_canonical
    assert set(trie.eos_tokens) == tokenizer.eos_token_ids
    few = max(1, tokenizer.vocab_size // 5000)
    for token in range(0, tokenizer.vocab_size, few):
        if not trie.is_special_token(token):
            assert trie.decode_bytes([token]) == tokenizer.token_bytes(token)
    assert all(trie.is_special_token(token) for token in range(tokenizer.vocab_size) if tokenizer.is_special(token))


def test_texts_are_cut_as_the_tokenizer_cuts_them(tokenizer):
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
    for text in (
        "Hello world",
        " hello",
        '{"name": "Gr\u00f6\u00dfe", "n": [1, 22, 333]}',
        "\u65e5\u672c\u8a9e",
        "\n\n x",
    ):
        assert b"".join(map(tokenizer.token_bytes, vocabulary.tokens_of(text.encode()))) == text.encode()
        if tokenizer.is_byte_level:
            assert vocabulary.tokens_of(text.encode()) == tokenizer.encode(text, add_special_tokens=False)


def test_special_tokens_and_padding_match_no_text(tokenizer):
    size = tokenizer.vocab_size + 40
    matcher = LLMatcher(Vocabulary(tokenizer, size).trie(), "start: /(.|\\n)*/")
    found = set(allowed(matcher))
    ends = tokenizer.eos_token_ids
    assert ends <= found
    assert not any(tokenizer.is_special(token) for token in found - ends)
    assert max(found) < tokenizer.vocab_size


def test_a_text_that_spells_a_token_is_a_text(tokenizer):
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
    for name, token in tokenizer.added_tokens.items():
        if not vocabulary.trie().is_special_token(token):
            continue
        text = f'"{name}" x'
        ids = vocabulary.tokens_of(text.encode())
        assert token not in ids
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        matcher = LLMatcher(vocabulary.trie(), f"start: {json.dumps(text)}")
        while not matcher.is_accepting():
            (forced,) = allowed(matcher)
            assert forced != token
            assert matcher.consume_token(forced)


def test_a_token_that_its_model_could_put_together_is_no_text():
    pieces = ["<", ">", "e", "<e", "<e>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab, merges=[("<", "e"), ("<e", ">")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["<e>"])
    vocabulary = Vocabulary(Tokenizer(TokenizerParts(backend, frozenset({4}), None, {}, {})), 5)
    assert vocabulary.tokens_of(b"<e><") == [3, 1, 0]


def test_a_grammar_may_name_tokens(smollm2):
    vocabulary = Vocabulary(smollm2, smollm2.vocab_size)
    start, end = (smollm2.added_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))
    text = 'start: <|im_start|> A /<|im_end|>/ // <|im_end|>\nA: "<|im_end|>" <|im_end|> <[7]> <|nope|>\n'
    by_ids = f'start: <[{start}]> A /<|im_end|>/ // <|im_end|>\nA: "<|im_end|>" <[{end}]> <[7]> <|nope|>\n'
    assert vocabulary.by_ids(text) == by_ids
    nested = {"grammars": [{"lark_grammar": text}, {"json_schema": {"const": "<|im_end|>"}}]}
    assert json.loads(vocabulary.by_ids(json.dumps(nested)))["grammars"] == [
        {"lark_grammar": by_ids},
        nested["grammars"][1],
    ]
    assert vocabulary.by_ids("{<") == "{<"


def test_an_end_token_that_is_no_special_token_is_no_text(byte_level):
    backend = Backend.from_str(byte_level.to_json())
    end = byte_level.encode("e", add_special_tokens=False)[0]
    tokenizer = Tokenizer(TokenizerParts(backend, frozenset({end}), None, {}, {}))
    assert not tokenizer.is_special(end)
    matcher = LLMatcher(Vocabulary(tokenizer, tokenizer.vocab_size).trie(), 'start: "x" /[a-z]/ "y"')
    assert matcher.consume_tokens(tokenizer.encode("x", add_special_tokens=False))
    assert end not in allowed(matcher)


def test_tokens_that_a_response_template_reads_are_no_text(byte_level):
    backend = Backend.from_str(byte_level.to_json())
    backend.add_tokens([AddedToken(text, special=False) for text in ("｜DSML｜", "｜else｜")])
    tokenizer = Tokenizer(TokenizerParts(backend, byte_level.eos_token_ids, None, {}, {}))
    matcher = LLMatcher(Vocabulary(tokenizer, tokenizer.vocab_size).trie(), "start: /.*/")
    assert tokenizer.added_tokens["｜DSML｜"] not in allowed(matcher)
    assert tokenizer.added_tokens["｜else｜"] in allowed(matcher)


@pytest.mark.parametrize(
    ("ends", "size", "sentence"), [(frozenset(), 400, "no end token"), (frozenset({1}), 40, "its logits only 40")]
)
def test_tokenizers_that_do_not_fit_are_refused(byte_level, ends, size, sentence):
    tokenizer = Tokenizer(TokenizerParts(Backend.from_str(byte_level.to_json()), ends, None, {}, {}))
    with pytest.raises(ModelError, match=sentence):
        Vocabulary(tokenizer, size).trie()


def test_a_tokenizer_of_words_is_refused():
    backend = Backend(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer = Tokenizer(TokenizerParts(backend, frozenset({1}), None, {}, {}))
    vocabulary = Vocabulary(tokenizer, 2)
    for _ in range(2):
        with pytest.raises(ModelError, match="do not work with this model's tokenizer"):
            vocabulary.trie()
    assert vocabulary.prepare() is vocabulary.prepare()


def test_tokens_of_white_space_alone(tokenizer):
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size + 40)
    bits = np.unpackbits(vocabulary.blank().view(np.uint8), bitorder="little")
    assert len(bits) == 32 * vocabulary.words
    texts = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    blank = [i for i, text in enumerate(texts) if text and not text.strip(b" \t\r\n") and not tokenizer.is_special(i)]
    assert np.flatnonzero(bits).tolist() == blank
    assert {b" ", b"\n"} <= {tokenizer.token_bytes(token) for token in blank}


def test_it_is_built_once(byte_level):
    vocabulary = Vocabulary(byte_level, byte_level.vocab_size)
    assert vocabulary.trie() is vocabulary.trie()
    assert vocabulary.blank() is vocabulary.blank()
