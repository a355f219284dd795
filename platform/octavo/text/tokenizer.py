"""`Tokenizer`: text to token ids and back, from a Hugging Face directory or a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from octavo.errors import BadRequest, ConfigError
from octavo.model_files import reading
from octavo.source import Source
from octavo.text.gguf_tokenizer import byte_alphabet, read_gguf
from octavo.text.hf_tokenizer import read_hf
from octavo.text.parts import TokenizerParts


def load_tokenizer(source: Source) -> Tokenizer:
    """Read the tokenizer of a model.

    SmolLM2's GGUF (49,152 tokens) takes 0.26 s, Gemma 3's (262,144 tokens without merges) 2.1 s.

    Raises:
        ModelError: the source holds no tokenizer, or one of a kind that is not supported; the message names it.
    """
    return Tokenizer(read_hf(source.path) if source.kind == "hf" else read_gguf(source.path))


def check_draft(tokenizer: Tokenizer, name: str, draft: Source) -> None:
    """Raise ConfigError unless a draft model's tokens are those of the model `name`.

    Raises:
        ModelError: as `load_tokenizer`.
    """
    if (piece := tokenizer.differs_at(load_tokenizer(draft))) is not None:
        raise ConfigError(
            f"speculation.draft {draft.name!r} has another tokenizer than {name!r}: {piece!r} is not the same token; "
            "use a smaller model of the same family"
        )


class Tokenizer:
    """Text to token ids and back, with the answers of `transformers.AutoTokenizer` on the same files.

    Safe to share between threads. Ids outside the vocabulary decode to nothing (models pad their output beyond it).

    Attributes:
        vocab_size: number of tokens, added ones included; a model's logits may have more entries.
        eos_token_ids: all the model's end tokens.
        bos_token_id: the token that begins a text, if the model has one.
        special_tokens: names such as "bos_token" -> text: variables of the chat template.
        chat_templates: names -> Jinja source; "default" is the usual one.
        response_template: how the model's answers are to be read (see `octavo.text.responses`), as its files have it.
        added_tokens: texts of the tokens that are not made of others -> ids.
        is_byte_level: each token is a string of bytes and texts are their concatenation, read as UTF-8.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend = parts.backend
        self.vocab_size: int = parts.backend.get_vocab_size()
        self.eos_token_ids = parts.eos_token_ids
        self.bos_token_id = parts.bos_token_id
        self.special_tokens: Mapping[str, str] = parts.special_tokens
        self.chat_templates: Mapping[str, str] = parts.chat_templates
        added = parts.backend.get_added_tokens_decoder()
        self.response_template = parts.response_template
        self.added_tokens: Mapping[str, int] = {token.content: token_id for token_id, token in added.items()}
        self._takes_types = parts.has_types
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._steps = list(_decoder_steps(parts.backend))
        self.is_byte_level = [step["type"] for step in self._steps] == ["ByteLevel"]
        self._bytes: dict[int, bytes] = {}

    @property
    def chat_template(self) -> str | None:
        """The default chat template's Jinja source."""
        return self.chat_templates.get("default")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. The names of special tokens in it become those tokens, as in transformers.

        Raises:
            BadRequest: the text is not valid Unicode (it holds a lone surrogate).
            ModelError: the model's pre-tokenizer pattern fails on this text, or a token it needs is missing.
        """
        ids: list[int] = self._encoded([text], add_special_tokens)[0].ids
        return ids

    def encode_pair(self, first: str, second: str, most: int | None = None) -> tuple[list[int], int]:
        """Token ids of two texts that a model reads together, as transformers' `tokenizer([(first, second)])`: with
        special tokens before, between and after them; and the index of the second text's first token.

        Args:
            most: tokens to keep, special ones included; None: all. The longer text is cut to the other's length, then
                both alike ("longest_first", which cross encoders are asked with).

        Raises:
            BadRequest, ModelError: as `encode`; `most` leaves no token for one of the texts, which would then be scored
                unread.
        """
        one, other = self._encoded([first, second], add_special_tokens=False)
        if most is not None:
            special: int = self._backend.num_special_tokens_to_add(True)
            if (room := most - special) < 2:
                raise BadRequest(f"two texts read together take {special} special tokens: keep at least {special + 2}")
            for encoding, length in zip((one, other), longest_first(len(one), len(other), room), strict=True):
                encoding.truncate(length)
        found = self._backend.post_process(one, other)
        of = found.sequence_ids  # None for a special token
        empty = len(of) - (bool(of) and of[-1] is None)
        return found.ids, of.index(1) if 1 in of else empty

    @cached_property
    def has_types(self) -> bool:
        """Whether a pair's second text is of another token type than the first: BERT's is, XLM-R's is not, and a model
        of either architecture may have been trained with the other's tokenizer."""
        one, other = self._encoded(["a", "b"], add_special_tokens=False)
        return self._takes_types and 1 in self._backend.post_process(one, other).type_ids

    def _encoded(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise BadRequest(
                    f"the text is not valid Unicode: character {error.start} is half of a surrogate pair"
                ) from None
        # unlike `encode`, the batch call releases the GIL and computes no character offsets
        try:
            return list(self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens))
        except BaseException:
            with reading("the model's tokenizer"):  # not around it: that would cost 1 us each time
                raise

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; no spaces are cleaned up.

        Raises:
            BadRequest: an id is negative or does not fit 32 bits.
            ModelError: the model's own decoder fails.
        """
        try:
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))
        except OverflowError:
            raise BadRequest(f"token ids must be at least 0 and less than {self.vocab_size}") from None
        except BaseException:
            with reading("the model's tokenizer"):
                raise

    def is_special(self, token_id: int) -> bool:
        """Whether `decode` leaves the token out when it skips special tokens."""
        return token_id in self._special_ids

    def token_text(self, token_id: int) -> str:
        """One token's text with its leading space; bytes that are no whole character become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, even if they are only part of a character; empty for unknown ids."""
        found = self._bytes.get(token_id)
        if found is None:
            piece = self._backend.id_to_token(token_id) if token_id >= 0 else None
            found = self._bytes[token_id] = b"" if piece is None else self._piece_bytes(piece)
        return found

    def is_byte_token(self, token_id: int) -> bool:
        """Whether the token is a SentencePiece byte such as <0xE2>."""
        piece = self._backend.id_to_token(token_id)
        return piece is not None and _fallback_byte(piece) is not None

    def differs_at(self, other: Tokenizer) -> str | None:
        """A token that another tokenizer has under another id, or not at all; None where both know the same ones.

        Ids that only one of them has at its end are none: models pad their vocabularies.
        """
        common = min(self.vocab_size, other.vocab_size)
        theirs: dict[str, int] = other._backend.get_vocab()
        ours: dict[str, int] = self._backend.get_vocab()
        return next((piece for piece, token in ours.items() if token < common and theirs.get(piece) != token), None)

    def to_json(self) -> str:
        """All of it but the names of its end tokens, as a tokenizer.json."""
        return str(self._backend.to_str())

    def token_id(self, piece: str) -> int | None:
        """The id of a vocabulary entry, spelled as the vocabulary spells it."""
        found: int | None = self._backend.token_to_id(piece)
        return found

    def _piece_bytes(self, piece: str) -> bytes:
        kinds = {step["type"] for step in self._steps}
        if "ByteLevel" in kinds:
            return _alphabet_bytes(piece)
        if "ByteFallback" in kinds and (byte := _fallback_byte(piece)) is not None:
            return byte
        for step in self._steps:
            if step["type"] == "Replace" and "String" in step["pattern"]:
                piece = piece.replace(step["pattern"]["String"], step["content"])
            elif step["type"] == "Metaspace":
                piece = piece.replace(step["replacement"], " ")
        return piece.encode()


def longest_first(one: int, other: int, room: int) -> tuple[int, int]:
    """The lengths to which two texts are cut for `room` tokens, as the `tokenizers` library does it."""
    if one + other <= room:
        return one, other
    short, long = sorted((one, other))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (long, short) if one > other else (short, long)


def _decoder_steps(backend: Any) -> Iterator[dict[str, Any]]:
    """The decoder as a flat list of its JSON steps."""
    if backend.decoder is None:
        return
    waiting = [json.loads(backend.decoder.__getstate__())]
    while waiting:
        step = waiting.pop(0)
        if step["type"] == "Sequence":
            waiting = step["decoders"] + waiting
        else:
            yield step


_BYTE_OF = {char: byte for byte, char in byte_alphabet().items()}


def _alphabet_bytes(piece: str) -> bytes:
    """As `tokenizers`' ByteLevel decoder: a piece with a character outside the alphabet is taken as plain text."""
    try:
        return bytes([_BYTE_OF[char] for char in piece])
    except KeyError:
        return piece.encode()


def _fallback_byte(piece: str) -> bytes | None:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            return None
    return None
