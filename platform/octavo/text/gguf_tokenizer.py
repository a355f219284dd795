"""Builds a tokenizer from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama", Gemma included).

Follows transformers' converter (integrations/gguf/gguf_tokenizer_mapping.py), against which the tests compare, and
llama.cpp (llama-vocab.cpp) for what the converter leaves out: the pre-tokenizer's defaults, control tokens outside the
byte alphabet (DeepSeek's), the end tokens of a turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from octavo.errors import ModelError
from octavo.gguf_header import read_metadata
from octavo.text.parts import TokenizerParts
from octavo.text.pre_tokenizer import pre_tokenizer, splitting

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # llama.cpp's token types
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_END_KEYS = ("eos", "eot", "eom")
_END_TOKENS = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<end_of_turn>", "<end_of_utterance>"}
    | {"<|end_of_text|>", "<|endoftext|>", "<eos>", "</s>", "<EOT>", "[EOT]", "<｜end▁of▁sentence｜>"}
)

_Merges = list[tuple[str, str]]


def read_gguf(path: Path) -> TokenizerParts:
    """The tokenizer and chat templates of a GGUF file.

    Raises:
        ModelError: the file holds no tokenizer, or one of a kind that is not supported; the message names it.
    """
    metadata = read_metadata(path)
    model = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if model not in ("gpt2", "llama") or not tokens:
        raise ModelError(f"{path} holds a tokenizer of kind {model!r}; supported are 'gpt2' and 'llama'")
    backend, add_bos = _byte_level(metadata) if model == "gpt2" else _sentencepiece(metadata)
    named = {name: tokens[i] for name, key in _NAMED.items() if (i := _token_id(metadata, key)) is not None}
    _add_tokens(backend, metadata, named.values())
    bos_id = _token_id(metadata, "bos")
    bos = _added(tokens, bos_id) if metadata.get("tokenizer.ggml.add_bos_token", add_bos) else None
    eos = _added(tokens, _token_id(metadata, "eos")) if metadata.get("tokenizer.ggml.add_eos_token") else None
    backend.post_processor = _wrap_with(bos, eos)
    return TokenizerParts(backend, _end_tokens(metadata), bos_id, named, _chat_templates(metadata))


def _token_id(metadata: Mapping[str, Any], key: str) -> int | None:
    token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return token_id if token_id is not None and token_id < len(metadata["tokenizer.ggml.tokens"]) else None


def _added(tokens: list[str], token_id: int | None) -> tuple[str, int] | None:
    return None if token_id is None else (tokens[token_id], token_id)


def _types(metadata: Mapping[str, Any]) -> list[int]:
    return metadata.get("tokenizer.ggml.token_type") or [1] * len(metadata["tokenizer.ggml.tokens"])


def _listed_merges(metadata: Mapping[str, Any]) -> _Merges | None:
    merges = metadata.get("tokenizer.ggml.merges")
    return None if merges is None else [(m[: (cut := m.find(" ", 1))], m[cut + 1 :]) for m in merges]


def _backend(vocab: dict[str, int], merges: _Merges, **options: Any) -> Backend:
    try:
        return Backend(BPE(vocab=vocab, merges=merges, **options))
    except Exception as error:  # the library raises plain Exception, for merges that are not in the vocabulary
        raise ModelError(f"this GGUF file's tokenizer is damaged: {error}") from error


# ── byte-level ──


def _byte_level(metadata: Mapping[str, Any]) -> tuple[Backend, bool]:
    entry = splitting(metadata.get("tokenizer.ggml.pre", ""))
    added = {_CONTROL, _USER_DEFINED}
    vocab = {
        token if kind in added else _in_byte_alphabet(token): index
        for index, (token, kind) in enumerate(zip(metadata["tokenizer.ggml.tokens"], _types(metadata), strict=True))
    }
    merges = _listed_merges(metadata)
    if merges is None:
        raise ModelError("this GGUF file's byte-level tokenizer has no merges")
    backend = _backend(vocab, merges, ignore_merges=entry.ignore_merges)
    backend.pre_tokenizer = pre_tokenizer(entry)
    backend.decoder = decoders.ByteLevel()
    return backend, entry.add_bos


@cache
def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, encoder.py `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def _in_byte_alphabet(token: str) -> str:
    """A few files spell ordinary tokens plainly instead of in the byte alphabet."""
    alphabet = byte_alphabet()
    if set(token) <= set(alphabet.values()):
        return token
    return "".join(alphabet[byte] for byte in token.encode())


# ── SentencePiece ──


def _sentencepiece(metadata: Mapping[str, Any]) -> tuple[Backend, bool]:
    gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
    tokens = metadata["tokenizer.ggml.tokens"]
    if gemma:
        tokens = [_respell(token) for token in tokens]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = _listed_merges(metadata)
    if merges is None:
        # Gemma's scores do not follow its merge order; the order of its vocabulary does
        scores = [-float(i) for i in range(len(tokens))] if gemma else metadata.get("tokenizer.ggml.scores")
        if scores is None or len(scores) != len(tokens):
            raise ModelError("this GGUF file's SentencePiece tokenizer has neither merges nor a score for every token")
        merges = merges_from_scores(vocab, dict(zip(tokens, scores, strict=True)))
    unknown = _token_id(metadata, "unknown")
    unk_token = None if unknown is None else tokens[unknown]
    backend = _backend(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token=unk_token)
    prefix = not gemma and bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    _set_spaces(backend, prefix=prefix, split=gemma)
    return backend, True


def _respell(token: str) -> str:
    """Gemma's files hold runs of spaces as such, while the merges know them as runs of U+2581."""
    return "▁" * len(token) if " " in token and not token.strip() else token


def _set_spaces(backend: Backend, *, prefix: bool, split: bool) -> None:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if split:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        scheme = "first" if prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def merges_from_scores(vocab: Mapping[str, int], scores: Mapping[str, float]) -> _Merges:
    """The merges a scored vocabulary implies: every way to cut a token into two tokens, best scores first.

    Equal to transformers' `generate_merges` (the order that SentencePiece's BPE applies them in).
    """
    found = []
    for token, score in scores.items():
        cuts = [
            (left, right)
            for cut in range(1, len(token))
            if (left := token[:cut]) in vocab and (right := token[cut:]) in vocab
        ]
        if len(cuts) > 1:
            cuts.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(score, len(left), len(right), left, right) for left, right in cuts]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


# ── what both have ──


def _wrap_with(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> TemplateProcessing:
    """A post-processor that puts `bos` before and `eos` after a text when special tokens are asked for."""
    single = " ".join([*([bos[0]] if bos else []), "$A", *([eos[0]] if eos else [])])
    return TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=[t for t in (bos, eos) if t])


def _add_tokens(backend: Backend, metadata: Mapping[str, Any], named: Iterable[str]) -> None:
    """Make control tokens special, and keep user-defined ones whole, as llama.cpp and Hugging Face do."""
    pairs = list(zip(metadata["tokenizer.ggml.tokens"], _types(metadata), strict=True))
    special = [token for token, kind in pairs if kind == _CONTROL] + list(named)
    ordinary = [token for token, kind in pairs if kind == _USER_DEFINED]
    in_vocab = {token: None for token in [*special, *ordinary] if backend.token_to_id(token) is not None}
    is_special = set(special)
    backend.add_tokens([AddedToken(token, normalized=False, special=token in is_special) for token in in_vocab])


def _end_tokens(metadata: Mapping[str, Any]) -> frozenset[int]:
    """The file's end ids, and the control tokens known to end a turn, which many files do not list.

    A name that serves as the unknown token is left out: SmolLM2's <|endoftext|>, which its own generation_config does
    not count as an end either.
    """
    listed = {i for key in _END_KEYS if (i := _token_id(metadata, key)) is not None}
    unknown = _token_id(metadata, "unknown")
    known = {
        index
        for index, (token, kind) in enumerate(zip(metadata["tokenizer.ggml.tokens"], _types(metadata), strict=True))
        if kind == _CONTROL and token in _END_TOKENS and index != unknown
    }
    return frozenset(listed | known)


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    named = {key.removeprefix(f"{prefix}."): text for key, text in metadata.items() if key.startswith(f"{prefix}.")}
    return ({"default": metadata[prefix]} if prefix in metadata else {}) | named
