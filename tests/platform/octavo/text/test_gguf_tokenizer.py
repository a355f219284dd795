from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelError
from octavo.source import Source
from octavo.text.gguf_tokenizer import merges_from_scores
from octavo.text.pre_tokenizer import SPLITTINGS
from octavo.text.tokenizer import Tokenizer, load_tokenizer


def hugging_face(source: Source) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(source.path.parent), gguf_file=source.path.name)


def random_texts(count: int) -> list[str]:
    rng = random.Random(1)
    ranges = [(32, 127), (32, 127), (48, 58), (9, 11), (32, 33), (0xA0, 0x250), (0x370, 0x2000), (0x4E00, 0xA000),
              (0x1F300, 0x1FB00)]  # fmt: skip
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 40))) for _ in range(count)]


def assert_alike(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    for text in texts:
        for add_special_tokens in (True, False):
            ids = ours.encode(text, add_special_tokens)
            assert ids == theirs.encode(text, add_special_tokens=add_special_tokens), text
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


def test_smollm2_encodes_and_decodes_as_transformers_does(smollm2, smollm2_in_transformers, texts):
    assert_alike(smollm2, smollm2_in_transformers, texts + random_texts(200))


def test_smollm2_decodes_any_ids_as_transformers_does(smollm2, smollm2_in_transformers):
    rng = random.Random(2)
    for _ in range(100):
        ids = [rng.randrange(smollm2.vocab_size) for _ in range(20)]
        assert smollm2.decode(ids) == smollm2_in_transformers.decode(ids, skip_special_tokens=True)


def test_smollm2_special_tokens(smollm2, smollm2_in_transformers):
    assert smollm2.vocab_size == len(smollm2_in_transformers) == 49152
    assert smollm2.eos_token_ids == {2, 4}  # <|im_end|>, <reponame>; <|endoftext|> is its unknown token
    assert smollm2.bos_token_id == 1
    assert smollm2.special_tokens == smollm2_in_transformers.special_tokens_map
    assert smollm2.chat_template == smollm2_in_transformers.chat_template


KNOWN_TO_TRANSFORMERS = ["default", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "dbrx"]


@pytest.mark.parametrize("pre", KNOWN_TO_TRANSFORMERS)
def test_byte_level_file_encodes_as_in_transformers(pre, write_gguf, tiny_tokenizer_dir, texts):
    source = write_gguf(
        tiny_tokenizer_dir, "llama", "gpt2", pre=pre, bos_token_id=1, eos_token_id=2, add_bos_token=True
    )
    assert_alike(load_tokenizer(source), hugging_face(source), texts + random_texts(50))


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_bos_and_eos_are_added_as_the_file_says(
    model, add_bos, add_eos, write_gguf, tiny_tokenizer_dir, sentencepiece_dir
):
    folder = tiny_tokenizer_dir if model == "gpt2" else sentencepiece_dir
    source = write_gguf(
        folder, "llama", model, bos_token_id=1, eos_token_id=2, add_bos_token=add_bos, add_eos_token=add_eos
    )
    tokenizer = load_tokenizer(source)
    bare = tokenizer.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("hello") == [1] * add_bos + bare + [2] * add_eos == hugging_face(source).encode("hello")


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("gpt-2", False)])
def test_files_that_do_not_say_add_bos_as_llama_cpp_does(pre, adds, write_gguf, tiny_tokenizer_dir):
    source = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", pre=pre, bos_token_id=1, eos_token_id=2)
    assert (load_tokenizer(source).encode("hello")[0] == 1) == adds


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_sentencepiece_file_encodes_as_in_transformers(arch, write_gguf, sentencepiece_dir, texts):
    keys = {"add_space_prefix": False} if arch == "gemma3" else {}
    source = write_gguf(sentencepiece_dir, arch, "llama", bos_token_id=1, eos_token_id=2, unknown_token_id=0, **keys)
    # transformers' Gemma tokenizer adds a <pad> and a <mask> that this vocabulary does not have
    assert_alike(load_tokenizer(source), hugging_face(source), [*texts, *random_texts(50)])


def test_sentencepiece_file_equals_the_directory_it_was_made_from(write_gguf, sentencepiece_dir, sentencepiece, texts):
    source = write_gguf(sentencepiece_dir, "llama", "llama", bos_token_id=1, eos_token_id=2, unknown_token_id=0)
    tokenizer = load_tokenizer(source)
    for text in texts:
        # Metaspace("first") and Prepend differ by design where a text starts with a space or follows a special token
        if not text.startswith((" ", "▁")) and not any(f"{token}" in text for token in ("<s>", "</s>", "<unk>")):
            assert tokenizer.encode(text) == sentencepiece.encode(text)


def test_no_space_is_put_first_where_the_file_says_so(write_gguf, sentencepiece_dir):
    source = write_gguf(sentencepiece_dir, "llama", "llama", bos_token_id=1, eos_token_id=2, add_space_prefix=False)
    tokenizer = load_tokenizer(source)
    ids = tokenizer.encode("hello", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == b"hello"
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_gemma_runs_of_spaces_are_tokens(write_gguf, sentencepiece_dir, sentencepiece):
    tokens = [*(_piece(sentencepiece, i) for i in range(sentencepiece.vocab_size)), "    "]
    types = {"    ": 4}
    source = write_gguf(
        sentencepiece_dir, "gemma3", "llama", tokens=tokens, types=types, bos_token_id=1, eos_token_id=2,
        add_space_prefix=False, unknown_token_id=0,
    )  # fmt: skip
    tokenizer = load_tokenizer(source)
    assert tokenizer.token_bytes(len(tokens) - 1) == b"    "
    assert tokenizer.decode(tokenizer.encode("a    b")) == "a    b"


def _piece(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer._backend.id_to_token(token_id)


def test_control_tokens_outside_the_byte_alphabet_keep_their_ids(write_gguf, tiny_tokenizer_dir, byte_level):
    tokens = [_piece(byte_level, i) for i in range(byte_level.vocab_size)]
    tokens[0] = "<｜end▁of▁sentence｜>"
    source = write_gguf(
        tiny_tokenizer_dir, "llama", "gpt2", tokens=tokens, types={tokens[0]: 3}, pre="deepseek-v3",
        bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    tokenizer = load_tokenizer(source)
    assert tokenizer.vocab_size == byte_level.vocab_size
    assert tokenizer.encode("a<｜end▁of▁sentence｜>b")[1] == 0
    assert tokenizer.decode([0], skip_special_tokens=False) == "<｜end▁of▁sentence｜>"
    assert tokenizer.eos_token_ids == {0, 2}  # and <|im_end|>


def test_user_defined_tokens_stay_whole_and_are_shown(write_gguf, tiny_tokenizer_dir, byte_level):
    tokens = [*(_piece(byte_level, i) for i in range(byte_level.vocab_size)), "<think>"]
    source = write_gguf(
        tiny_tokenizer_dir, "llama", "gpt2", tokens=tokens, types={"<think>": 4}, bos_token_id=1, eos_token_id=2
    )
    tokenizer = load_tokenizer(source)
    assert tokenizer.encode("<think>") == [len(tokens) - 1]
    assert tokenizer.decode([len(tokens) - 1]) == "<think>"


def test_end_tokens_are_a_set(write_gguf, tiny_tokenizer_dir):
    source = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", bos_token_id=1, eos_token_id=7, eot_token_id=8)
    assert load_tokenizer(source).eos_token_ids == {0, 2, 7, 8}  # <|endoftext|>, <|im_end|>, eos, eot


ENDS = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|end_of_text|>", "<EOT>", "[EOS]",
        "<end_of_utterance>", "<｜end▁of▁sentence｜>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", [1, 4, 3])
def test_tokens_that_look_like_ends_are_whatever_their_type(
    end, kind, write_gguf, tiny_tokenizer_dir, byte_level, caplog
):
    tokens = [*(_piece(byte_level, i) for i in range(byte_level.vocab_size)), end]
    tokens[2] = "<|other|>"  # instead of <|im_end|>
    source = write_gguf(
        tiny_tokenizer_dir, "llama", "gpt2", tokens=tokens, types={end: kind}, bos_token_id=1, eos_token_id=7
    )
    tokenizer = load_tokenizer(source)
    assert tokenizer.eos_token_ids == {0, 7, len(tokens) - 1}
    assert tokenizer.encode(f"a{end}b")[1:-1] == [len(tokens) - 1]
    assert tokenizer.decode([len(tokens) - 1]) == ""
    assert (end in caplog.text) == (kind != 3)


def test_control_tokens_that_end_nothing(write_gguf, tiny_tokenizer_dir, byte_level):
    tokens = [*(_piece(byte_level, i) for i in range(byte_level.vocab_size)), "<|fim_prefix|>", "<|vision|>"]
    source = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", tokens=tokens, bos_token_id=1, eos_token_id=2)
    tokenizer = load_tokenizer(source)
    assert tokenizer.eos_token_ids == {0, 2}
    assert tokenizer.is_special(len(tokens) - 2)
    assert len(tokenizer.encode("<|vision|>")) > 1


@pytest.mark.parametrize(
    ("more", "ends"),
    [
        (["<|return|>", "<|call|>", "<|end|>"], {0, 2, 400, 401}),
        (["<|flush|>", "<|calls|>", "<|end|>"], {0, 2, 400, 401}),
        (["<|return|>", "<|end|>"], {0, 2, 400, 401}),
        (["<|tool_response>", "</s>"], {0, 2, 400}),
    ],
)
def test_vocabularies_in_which_an_end_is_none(more, ends, write_gguf, tiny_tokenizer_dir, byte_level):
    tokens = [*(_piece(byte_level, i) for i in range(400)), *more]
    source = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", tokens=tokens, bos_token_id=1, eos_token_id=2)
    assert load_tokenizer(source).eos_token_ids == ends


def test_sentencepiece_ids_that_a_file_does_not_name(write_gguf, sentencepiece_dir):
    tokenizer = load_tokenizer(write_gguf(sentencepiece_dir, "llama", "llama"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, {2})
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert tokenizer.encode("a")[0] == 1


def test_ids_beyond_the_vocabulary_are_not_taken(write_gguf, sentencepiece_dir):
    source = write_gguf(sentencepiece_dir, "llama", "llama", bos_token_id=9999, eos_token_id=9999)
    tokenizer = load_tokenizer(source)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, {2})


def test_tokens_without_a_text_keep_their_ids(write_gguf, tiny_tokenizer_dir, byte_level):
    tokens = [*(_piece(byte_level, i) for i in range(byte_level.vocab_size)), "", "", "<x>"]
    source = write_gguf(
        tiny_tokenizer_dir, "llama", "gpt2", tokens=tokens, types={"<x>": 4}, bos_token_id=1, eos_token_id=2
    )
    tokenizer = load_tokenizer(source)
    assert tokenizer.vocab_size == len(tokens)
    assert tokenizer.encode("<x>") == [len(tokens) - 1]


def test_a_token_that_is_there_twice_is_named(write_gguf, tiny_tokenizer_dir, byte_level):
    tokens = [*(_piece(byte_level, i) for i in range(byte_level.vocab_size)), "<x>", "<x>"]
    source = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", tokens=tokens, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ModelError, match="'<x>' twice"):
        load_tokenizer(source)


def test_named_chat_templates(write_gguf, tiny_tokenizer_dir):
    source = write_gguf(
        tiny_tokenizer_dir, "llama", "gpt2", bos_token_id=1, eos_token_id=2,
        **{"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "with tools"},
    )  # fmt: skip
    assert load_tokenizer(source).chat_templates == {"default": "plain", "tool_use": "with tools"}


@pytest.mark.parametrize("name", sorted(name for entry in SPLITTINGS for name in entry.names if name))
def test_every_known_pre_tokenizer_loses_no_text(name, write_gguf, tiny_tokenizer_dir, texts):
    source = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", pre=name, bos_token_id=1, eos_token_id=2)
    tokenizer = load_tokenizer(source)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


def test_unknown_pre_tokenizer_is_named(write_gguf, tiny_tokenizer_dir):
    source = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", pre="martian-7", bos_token_id=1, eos_token_id=2)
    with pytest.raises(ModelError, match=r"'martian-7'.*known are: .*llama-bpe"):
        load_tokenizer(source)


def test_unknown_kind_of_tokenizer_is_named(write_gguf, sentencepiece_dir):
    with pytest.raises(ModelError, match="kind 'rwkv'"):
        load_tokenizer(write_gguf(sentencepiece_dir, "llama", "rwkv"))


def test_merges_outside_the_vocabulary(write_gguf, tiny_tokenizer_dir, byte_level):
    tokens = [_piece(byte_level, i) for i in range(300)]
    source = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", tokens=tokens, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ModelError, match=r"damaged.*out of vocabulary"):
        load_tokenizer(source)


def test_a_file_without_a_tokenizer(tmp_path: Path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="kind None"):
        load_tokenizer(Source("bare", tmp_path / "bare.gguf", "gguf"))


def test_merges_of_a_token_that_no_model_has_are_not_looked_for():
    """It would be cut a million times."""
    token = "a" * (1 << 20)
    with pytest.raises(ModelError, match="they cannot be found for the token 'aaaa"):
        merges_from_scores({"a": 0, token: 1}, {"a": 0.0, token: 0.0})
