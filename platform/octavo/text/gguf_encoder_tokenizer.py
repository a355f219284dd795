"""The tokenizers of encoders from GGUF metadata: WordPiece ("bert") and SentencePiece's Unigram ("t5", of XLM-R).

llama.cpp's converter spells WordPiece's vocabulary as SentencePiece would: a word's first piece begins with U+2581, and
the others lose their ## (`BertModel.set_vocab` in convert_hf_to_gguf.py). The file does not say whether texts are made
lower case: they are where no piece holds a capital letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import Unigram, WordPiece
from tokenizers.processors import TemplateProcessing

from octavo.errors import ModelError
from octavo.text.parts import TokenizerParts

_CONTROL = 3  # llama.cpp's token type
_ROLES = {
    "cls_token": (("cls", "bos"), ("[CLS]", "<s>")),
    "sep_token": (("seperator", "eos"), ("[SEP]", "</s>")),  # ggml spells it so
    "unk_token": (("unknown",), ("[UNK]", "<unk>")),
    "pad_token": (("padding",), ("[PAD]", "<pad>")),
    "mask_token": (("mask",), ("[MASK]", "<mask>")),
}
"""Special tokens by name: the keys that may hold their id, and the texts that they have where no key does."""


def encoder_parts(metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer of a file whose `tokenizer.ggml.model` is "bert" or "t5".

    Raises:
        ModelError: a token is there twice, or one that the model needs is missing; the message names it.
    """
    is_wordpiece = metadata["tokenizer.ggml.model"] == "bert"
    pieces = _wordpieces(metadata) if is_wordpiece else list(metadata["tokenizer.ggml.tokens"])
    named = {name: pieces[i] for name in _ROLES if (i := _token_id(metadata, pieces, name)) is not None}
    if missing := {"cls_token", "sep_token", "unk_token"} - named.keys():
        raise ModelError(f"this GGUF file's tokenizer names no {', '.join(sorted(missing))}")
    backend = _wordpiece(pieces, named["unk_token"]) if is_wordpiece else _unigram(metadata, pieces, named["unk_token"])
    special = dict.fromkeys([*named.values(), *_control(metadata, pieces)])
    backend.add_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    begin, end = named["cls_token"], named["sep_token"]
    pair = f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1" if is_wordpiece else f"{begin} $A {end} {end} $B {end}"
    ids = [(piece, pieces.index(piece)) for piece in dict.fromkeys((begin, end))]
    backend.post_processor = TemplateProcessing(f"{begin} $A {end}", pair, ids)
    return TokenizerParts(backend, frozenset(), pieces.index(begin), named, {})


def _token_id(metadata: Mapping[str, Any], pieces: list[str], name: str) -> int | None:
    keys, texts = _ROLES[name]
    for key in keys:
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token_id, int) and 0 <= token_id < len(pieces):
            return token_id
    return next((pieces.index(text) for text in texts if text in pieces), None)


def _control(metadata: Mapping[str, Any], pieces: list[str]) -> list[str]:
    types = metadata.get("tokenizer.ggml.token_type") or []
    return [piece for piece, kind in zip(pieces, types, strict=False) if kind == _CONTROL]


def _wordpieces(metadata: Mapping[str, Any]) -> list[str]:
    """The vocabulary as BERT spells it."""
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type") or [None] * len(tokens)
    return [_respelled(token, kind == _CONTROL) for token, kind in zip(tokens, types, strict=False)]


def _respelled(token: str, is_control: bool) -> str:
    if is_control:
        return token
    if token.startswith("▁"):
        return token[1:]
    bracketed = len(token) > 2 and token.startswith("[") and token.endswith("]")  # older files leave [unused0] alone
    return token if bracketed else f"##{token}"


def _ids(pieces: list[str]) -> dict[str, int]:
    ids = {piece: i for i, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        twice = next(piece for i, piece in enumerate(pieces) if ids[piece] != i)
        raise ModelError(f"this GGUF file's tokenizer is damaged: it holds the token {twice!r} twice")
    return ids


def _wordpiece(pieces: list[str], unknown: str) -> Backend:
    is_cased = any(
        char.isascii() and char.isupper() for piece in pieces if piece[:1] not in ("[", "<") for char in piece
    )
    backend = Backend(WordPiece(_ids(pieces), unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return backend


def _unigram(metadata: Mapping[str, Any], pieces: list[str], unknown: str) -> Backend:
    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(pieces):
        raise ModelError(f"this GGUF file's tokenizer has {len(pieces)} tokens, and scores for {len(scores)} of them")
    unk_id = _ids(pieces)[unknown]
    backend = Backend(Unigram(list(zip(pieces, scores, strict=True)), unk_id=unk_id, byte_fallback=False))
    if charsmap := metadata.get("tokenizer.ggml.precompiled_charsmap"):
        backend.normalizer = normalizers.Precompiled(bytes(byte % 256 for byte in charsmap))
    scheme = "always" if metadata.get("tokenizer.ggml.add_space_prefix", True) else "never"
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return backend
