"""Turns token ids into text as they arrive, and never emits half a character.

There are two kinds of tokenizer, each with an exact method:

* Byte-level: the text is the tokens' bytes read as UTF-8, so an incremental UTF-8 decoder gives the same text as
  decoding all at once. At most three bytes are held back.
* Others (SentencePiece): a token's text is independent of its neighbours, with two exceptions. The first token may lose
  its leading space, so later ones are decoded after an anchor token whose text is cut off again. And a run of byte
  tokens (<0xE2><0x82><0xAC>) is decoded as a whole: one invalid byte turns every byte of the run into U+FFFD. So a run
  is held back until it ends, or until it has MAX_HELD tokens; then its whole characters are released.

The prefix-offset method (TGI `decode_token`, vLLM `detokenizer_utils`) decodes a window of recent tokens twice per
token and waits for ever on a byte that never becomes a character; `tokenizers`' DecodeStream is the same method.
"""

from __future__ import annotations

import codecs
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from octavo.text.tokenizer import Tokenizer

MAX_HELD = 16
"""Most byte tokens whose text is held back: four characters of four bytes each. Beyond that, each character is released
as soon as it is whole."""

_REPLACEMENT = "\ufffd"


class IncrementalDetokenizer:
    """Text of one sequence, token by token.

    All pieces joined equal `tokenizer.decode(ids, skip_special_tokens)`. With a prompt they equal what the ids add to
    the prompt's text, so SentencePiece keeps the space between prompt and output. One exception: in a run of more than
    MAX_HELD byte tokens that is not valid UTF-8, characters that were already released are kept.

    Args:
        tokenizer: whose tokens they are.
        prompt_token_ids: prompt that the sequence continues; only its last tokens are used.
        skip_special_tokens: leave special tokens out.
        marks: token id -> the text to write for it, special or not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        marks: Mapping[int, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._marks = marks
        if tokenizer.is_byte_level:
            self._pieces: _Pieces = _Bytes(tokenizer)
        else:
            self._pieces = _Tokens(tokenizer, started=self._has_text(prompt_token_ids))

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; returns the text that is final and was not returned before."""
        if self._marks:
            return "".join(map(self._marked, token_ids))
        return "".join(self._pieces.push(token_id) for token_id in self._shown(token_ids))

    def finish(self) -> str:
        """The text still held back, once no more tokens come; incomplete characters become U+FFFD."""
        return self._pieces.finish()

    @property
    def held_characters(self) -> int:
        """Number of whole characters in the text still held back."""
        return self._pieces.held_characters

    def _marked(self, token_id: int) -> str:
        if (mark := (self._marks or {}).get(token_id)) is not None:
            return self._pieces.finish() + mark
        return "".join(map(self._pieces.push, self._shown([token_id])))

    def _has_text(self, prompt_token_ids: Sequence[int]) -> bool:
        return next(iter(self._shown(reversed(prompt_token_ids))), None) is not None

    def _shown(self, token_ids: Iterable[int]) -> Iterable[int]:
        """The ids that have a text: `decode` drops unknown ones, and special ones when asked to."""
        known = (i for i in token_ids if self._tokenizer.token_bytes(i))
        return (i for i in known if not self._tokenizer.is_special(i)) if self._skip else known


class TextOffsets:
    """Positions of a sequence's tokens in its text, in characters.

    A token that is part of a character has the position of that character; a token without text has the position of the
    next token.

    Args:
        start: characters of the text before these tokens; others as for `IncrementalDetokenizer`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        start: int = 0,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids, skip_special_tokens)
        self._length = start

    def push(self, token_ids: Sequence[int]) -> list[int]:
        """Add tokens; returns the offset of each."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._length + self._detokenizer.held_characters)
            self._length += len(self._detokenizer.push([token_id]))
        return offsets


def prompt_offsets(tokenizer: Tokenizer, token_ids: Sequence[int], text: str) -> list[int]:
    """Positions of a prompt's tokens in its text, which may lack special tokens that the tokenizer added."""
    found = TextOffsets(tokenizer, skip_special_tokens=False).push(token_ids)
    added = max(0, tokenizer.decode(token_ids, skip_special_tokens=False).find(text))
    return [min(max(0, offset - added), len(text)) for offset in found]


class _Pieces(Protocol):
    @property
    def held_characters(self) -> int: ...

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class _Bytes:
    held_characters = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Tokens:
    def __init__(self, tokenizer: Tokenizer, *, started: bool) -> None:
        self._tokenizer = tokenizer
        self._anchor = _anchor(tokenizer)
        self._anchor_length = len(tokenizer.decode(self._anchor))
        self._started = started
        self._held: list[int] = []
        self._patience = MAX_HELD

    @property
    def held_characters(self) -> int:
        return len(b"".join(map(self._tokenizer.token_bytes, self._held)).decode(errors="ignore"))

    def push(self, token_id: int) -> str:
        self._held.append(token_id)
        count = len(self._held)
        if not self._open(count):
            self._patience = MAX_HELD
            return self._release(count)
        if count <= self._patience:
            return ""
        # a run too long to wait for: from here on, what ends in a whole character is final
        self._patience = 0
        return self._release(self._whole(count))

    def finish(self) -> str:
        return self._release(len(self._held))

    def _open(self, count: int) -> bool:
        return self._tokenizer.is_byte_token(self._held[count - 1]) or self._text(count).endswith(_REPLACEMENT)

    def _whole(self, count: int) -> int:
        """How many of the held tokens end in a whole character, or can no longer become one (UTF-8 has at most 4
        bytes)."""
        for end in range(count, max(0, count - 4), -1):
            if not self._text(end).endswith(_REPLACEMENT):
                return end
        return count if count >= 4 else 0

    def _release(self, count: int) -> str:
        if not count:
            return ""
        text = self._text(count)
        del self._held[:count]
        self._started = True
        return text

    def _text(self, count: int) -> str:
        held = self._held[:count]
        if not self._started:
            return self._tokenizer.decode(held, skip_special_tokens=False)
        return self._tokenizer.decode([*self._anchor, *held], skip_special_tokens=False)[self._anchor_length :]


def _anchor(tokenizer: Tokenizer) -> list[int]:
    """A token with a one-letter text, to put before others; an empty list if the vocabulary has none."""
    ids = (tokenizer.token_id(char) for char in string.ascii_letters + string.digits)
    return next(([i] for i in ids if i is not None and not tokenizer.is_special(i)), [])
