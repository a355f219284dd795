"""Builds a tokenizer from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

Those of encoders are in `gguf_encoder_tokenizer.py`.

Follows transformers' converter (integrations/gguf/gguf_tokenizer_mapping.py), against which the tests compare, and
llama.cpp (llama-vocab.cpp) for what the converter leaves out: the pre-tokenizer's defaults, control tokens outside the
byte alphabet (DeepSeek's), the end tokens of a turn.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from octavo.errors import ModelError
from octavo.gguf_header import read_metadata
from octavo.model_files import reading
from octavo.text.gguf_encoder_tokenizer import encoder_parts
from octavo.text.parts import TokenizerParts
from octavo.text.pre_tokenizer import pre_tokenizer, splitting

logger = logging.getLogger(__name__)

_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # llama.cpp's token types
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}
"""Token ids to assume where a file names none. For byte-level vocabularies llama.cpp assumes Falcon's 11, which is a
comma in most of them; here they get none."""

_END_KEYS = ("eos", "eot", "eom")
_END_TOKENS = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>"}
    | {"<end_of_turn>", "<turn|>", "<|tool_response>", "<end_of_utterance>", "[e~["}
    | {"<|end_of_text|>", "<|endoftext|>", "<eos>", "</s>", "[EOS]", "<EOT>", "_<EOT>", "[EOT]"}
    | {"<｜end▁of▁sentence｜>"}
)
_FILE_END_TOKENS = {
    "fim_pad": frozenset({"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}),
    "fim_rep": frozenset({"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}),
    "fim_sep": frozenset({"<|file_sep|>"}),
}
"""Tokens that separate files in code models and so end an answer too: by metadata key, and by their texts."""

_CONTROL_TOKENS = _END_TOKENS.union(*_FILE_END_TOKENS.values()) | {
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
    "<|prefix|>", "<|suffix|>", "<|middle|>",
}  # fmt: skip
"""Texts that mark a control token, whatever type a file gives it."""

_SHOWN_TOKENS = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})
"""Tokens of the Harmony format: they stay in the text, because clients parse them."""

_LONGEST_TOKEN, _MOST_MERGES = 1024, 1 << 22
"""Most characters of a token and most merges, where merges have to be derived. The work grows with the square of a
token's length: 1,500 tokens of up to 1,500 equal letters, 1 MB, took 6 s."""

_Merges = list[tuple[str, str]]


def read_gguf(path: Path) -> TokenizerParts:
    """The tokenizer and chat templates of a GGUF file.

    Raises:
        ModelError: the file holds no tokenizer, or one of a kind that is not supported; the message names it.
    """
    with reading(f"the tokenizer in {path}"):
        return _parts(path, read_metadata(path))


def _parts(path: Path, metadata: dict[str, Any]) -> TokenizerParts:
    model, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if model in ("bert", "t5") and tokens:
        return encoder_parts(metadata)
    if model not in ("gpt2", "llama") or not tokens:
        raise ModelError(f"{path} holds a tokenizer of kind {model!r}; supported are 'gpt2', 'llama', 'bert' and 't5'")
    tokens = metadata["tokenizer.ggml.tokens"] = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    # broken UTF-8, of which several tokens may be alike once it is read, is no token that a text can be cut into
    if twice := [token for token, count in Counter(tokens).items() if count > 1 and "\ufffd" not in token]:
        raise ModelError(f"the tokenizer in {path} is damaged: it holds the token {twice[0]!r} twice")
    metadata["tokenizer.ggml.token_type"] = _mended_types(metadata)
    backend, add_bos = _byte_level(metadata) if model == "gpt2" else _sentencepiece(metadata)
    named = {name: tokens[i] for name, key in _NAMED.items() if (i := _token_id(metadata, key)) is not None}
    _add_tokens(backend, metadata, named.values())
    bos_id = _token_id(metadata, "bos")
    bos = _added(tokens, bos_id) if metadata.get("tokenizer.ggml.add_bos_token", add_bos) else None
    eos = _added(tokens, _token_id(metadata, "eos")) if metadata.get("tokenizer.ggml.add_eos_token") else None
    backend.post_processor = _wrap_with(bos, eos)
    return TokenizerParts(backend, _end_tokens(metadata), bos_id, named, _chat_templates(metadata))


def _token_id(metadata: Mapping[str, Any], key: str) -> int | None:
    """The id of a token with a role; the usual id if the file names none, or one outside its vocabulary."""
    size = len(metadata["tokenizer.ggml.tokens"])
    usual = _DEFAULT_IDS.get(metadata["tokenizer.ggml.model"], {}).get(key)
    for token_id in (metadata.get(f"tokenizer.ggml.{key}_token_id"), usual):
        if isinstance(token_id, int) and 0 <= token_id < size:
            return token_id
    return None


def _mended_types(metadata: Mapping[str, Any]) -> list[int]:
    """Every token's type: as in the file, except for tokens whose type llama.cpp derives from their text."""
    tokens = metadata["tokenizer.ggml.tokens"]
    types = list(metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens))
    if len(types) < len(tokens):
        raise ModelError(f"this GGUF file's tokenizer has {len(tokens)} tokens, and types for {len(types)} of them")
    shown = _SHOWN_TOKENS | _no_ends(set(tokens))
    control = _CONTROL_TOKENS - shown
    mended = {i: token for i, token in enumerate(tokens) if token in control and types[i] != _CONTROL}
    if mended and "tokenizer.ggml.token_type" in metadata:
        logger.warning(
            "taken for control tokens, which the GGUF file says they are not: %s", ", ".join(mended.values())
        )
    types = [_CONTROL if i in mended else kind for i, kind in enumerate(types)]
    return [_USER_DEFINED if token in shown else kind for token, kind in zip(tokens, types, strict=False)]


def _no_ends(present: set[str]) -> frozenset[str]:
    """Tokens that end an answer in other vocabularies but not in this one."""
    harmony = {"<|return|>", "<|call|>", "<|end|>"} <= present or (
        {"<|flush|>", "<|end|>"} <= present and not present.isdisjoint({"<|call|>", "<|calls|>"})
    )
    return frozenset({"<|end|>"} if harmony else ()) | ({"</s>"} if "<|tool_response>" in present else set())


def _added(tokens: list[str], token_id: int | None) -> tuple[str, int] | None:
    return None if token_id is None else (tokens[token_id], token_id)


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
        for index, (token, kind) in enumerate(
            zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
        )
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
    """Translate a token into the byte alphabet: a few files spell ordinary tokens plainly."""
    alphabet = byte_alphabet()
    if set(token) <= set(alphabet.values()):
        return token
    return "".join(alphabet[byte] for byte in token.encode())


# ── SentencePiece ──


def _sentencepiece(metadata: Mapping[str, Any]) -> tuple[Backend, bool]:
    stored = metadata["tokenizer.ggml.tokens"]
    tokens = _respelled(stored)
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = _listed_merges(metadata)
    if merges is None:
        # scores of files that spell runs of spaces do not follow the order of merges; that of the vocabulary does
        scores = metadata.get("tokenizer.ggml.scores") if tokens == stored else [-float(i) for i in range(len(tokens))]
        if scores is None or len(scores) != len(tokens):
            raise ModelError("this GGUF file's SentencePiece tokenizer has neither merges nor a score for every token")
        merges = merges_from_scores(vocab, dict(zip(tokens, scores, strict=True)))
    unknown = _token_id(metadata, "unknown")
    unk_token = None if unknown is None else tokens[unknown]
    backend = _backend(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token=unk_token)
    _set_spaces(backend, prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    return backend, True


def _respelled(tokens: list[str]) -> list[str]:
    """llama.cpp's converter writes runs of spaces that the vocabulary's author added as such, while the merges know
    them as runs of U+2581."""
    known = set(tokens)
    spelled = ["▁" * len(token) if " " in token and not token.strip() else token for token in tokens]
    return [new if new not in known else old for old, new in zip(tokens, spelled, strict=True)]


def _set_spaces(backend: Backend, *, prefix: bool) -> None:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    scheme = "first" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def merges_from_scores(vocab: Mapping[str, int], scores: Mapping[str, float]) -> _Merges:
    """The merges a scored vocabulary implies: every way to cut a token into two tokens, best scores first.

    Equal to transformers' `generate_merges` (the order that SentencePiece's BPE applies them in).

    Raises:
        ModelError: a token or the number of merges exceeds the bounds above.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in scores.items():
        if len(token) > _LONGEST_TOKEN or len(found) > _MOST_MERGES:
            raise ModelError(f"this GGUF file has no merges, and they cannot be found for the token {token[:20]!r}...")
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
    pairs = list(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    special = [token for token, kind in pairs if kind == _CONTROL] + list(named)
    ordinary = [token for token, kind in pairs if kind == _USER_DEFINED]
    in_vocab = {token: None for token in [*special, *ordinary] if backend.token_to_id(token) is not None}
    is_special = set(special)
    backend.add_tokens([AddedToken(token, normalized=False, special=token in is_special) for token in in_vocab])


def _end_tokens(metadata: Mapping[str, Any]) -> frozenset[int]:
    """The file's end ids, and the tokens known to end a turn, which many files do not list.

    A name that serves as the unknown token is left out: SmolLM2's <|endoftext|>, which its own generation_config does
    not count as an end either.
    """
    tokens, unknown = metadata["tokenizer.ggml.tokens"], _token_id(metadata, "unknown")
    listed = {i for key in (*_END_KEYS, *_FILE_END_TOKENS) if (i := _token_id(metadata, key)) is not None}
    texts = _END_TOKENS - _no_ends(set(tokens))
    for key, more in _FILE_END_TOKENS.items():
        texts |= more if _token_id(metadata, key) is None else frozenset()
    return frozenset(listed | {i for i, token in enumerate(tokens) if token in texts and i != unknown})


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    named = {key.removeprefix(f"{prefix}."): text for key, text in metadata.items() if key.startswith(f"{prefix}.")}
    templates = ({"default": metadata[prefix]} if prefix in metadata else {}) | named
    if any(not isinstance(text, str) for text in templates.values()):
        raise ModelError("a chat template of this GGUF file is not a text")
    return templates
