"""Texts of which vectors, scores or classes are wanted, as token ids: all are checked before any of them runs.

All of this is CPU work; `octavo_serve.api.pooling` does it beside the event loop, a slice of the texts at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from octavo.errors import BadRequest, PromptTooLong
from octavo.pooled import truncated
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.prompts import CHARACTERS_PER_TOKEN, PIECE, check_token_ids, exceeds
from octavo_serve.wire.messages import ModelInfo

S = TypeVar("S", str, list[int])


class Pair(NamedTuple):
    """Two texts that a model reads together: what is asked, and what may answer it."""

    first: str
    second: str


Text = str | list[int] | Pair
"""Token ids are taken as they are; special tokens are put around the others."""


class Encoded(NamedTuple):
    """A text's token ids; of a pair, the index of the second one's first token where that one has a type of its own.

    An array: 10,000 texts of 256 tokens are 10 MB of it, and 90 MB as a list.
    """

    token_ids: array[int]
    second: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How texts are made to fit.

    Attributes:
        most: tokens of a text that are read; None: all, and one that is too long is refused; -1: as many as the model
            reads. Of a pair, the longer text is cut first.
        keeps_end: the last tokens are read, not the first.
        most_of_second: tokens of a pair's second text that are read. -1 and None as above.
    """

    most: int | None = None
    keeps_end: bool = False
    most_of_second: int | None = None


NO_CUT = Cut()

_SPARSE = 8
"""A text may hold so many times fewer tokens than any usual one does, where it is to be cut."""


def longest(info: ModelInfo) -> int:
    """Tokens of a text that a model reads, special tokens included."""
    return min(info.max_model_len, info.pooling.max_tokens or info.max_model_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Makes token ids of one request's texts.

    Attributes:
        name: of a text in errors, by its number, such as "input[3]".
        param: the field that holds them.
        hint: what to do about a text that is too long.
    """

    tokenizer: Tokenizer
    info: ModelInfo
    name: Callable[[int], str]
    param: str
    cut: Cut = NO_CUT
    add_special_tokens: bool = True
    hint: str = "shorten it, or send truncate_prompt_tokens: -1"

    def encode(self, texts: Sequence[Text], first: int = 0) -> list[Encoded]:
        """The token ids of some of the texts.

        Args:
            first: number of the first of them.

        Raises:
            PromptTooLong, BadRequest: naming the text.
        """
        return [self._encode(text, number) for number, text in enumerate(texts, first)]

    def _encode(self, text: Text, number: int) -> Encoded:
        try:
            if isinstance(text, Pair):
                return self._pair(text, number)
            ids = self._text(text, number) if isinstance(text, str) else self._ids(text, number)
        except BadRequest as error:
            if error.param is not None:
                raise
            raise BadRequest(f"{self.name(number)}: {error}", self.param) from None
        return Encoded(array("i", ids))

    def _text(self, text: str, number: int) -> list[int]:
        if not text:
            raise BadRequest(f"{self.name(number)} must not be an empty text", self.param)
        most = self._most(self.cut.most)
        if self.cut.most is not None:
            text = self._enough(text, most, number)
        elif self._exceeds(text, most):
            raise self._too_long(number, f"more than {most}", most)
        ids = self.tokenizer.encode(text, self.add_special_tokens)
        if len(ids) > most and self.cut.most is None:
            raise self._too_long(number, f"{len(ids)}", most)
        return self._some(self._cut(ids, most), number)

    def _ids(self, ids: list[int], number: int) -> list[int]:
        most = self._most(self.cut.most)
        if len(ids) > most and self.cut.most is None:
            raise self._too_long(number, f"{len(ids)}", most)
        ids = self._end(ids, most)
        check_token_ids(ids, self.info.vocab_size, self.param)
        return self._some(ids, number)

    def _pair(self, pair: Pair, number: int) -> Encoded:
        most, cut = self._most(self.cut.most), self.cut
        if cut.most is not None and cut.most_of_second is None and not cut.keeps_end:
            one, other = (self._enough(text, most, number) for text in pair)
            return self._typed(*self.tokenizer.encode_pair(one, other, most))
        limited = cut.most is not None or cut.most_of_second is not None
        for text in pair[: 1 if limited else 2]:
            if self._exceeds(text, most):
                raise self._too_long(number, f"more than {most}", most)
        text = self._enough(pair.second, most, number) if limited else pair.second
        ids, second = self.tokenizer.encode_pair(pair.first, text)
        part, room = ids[second:], most - second
        special = next((n for n, token in enumerate(reversed(part)) if not self.tokenizer.is_special(token)), len(part))
        if cut.most_of_second not in (None, -1):
            room = min(room, special + (cut.most_of_second or 0))
        if len(part) > room and (not limited or room <= special):
            raise self._too_long(number, f"{len(ids)}", most)
        return self._typed([*ids[:second], *self._cut(part, room)], second)

    def _typed(self, ids: list[int], second: int) -> Encoded:
        return Encoded(array("i", ids), second if self.tokenizer.has_types else None)

    def _enough(self, text: str, most: int, number: int) -> str:
        """As much of a text as holds so many tokens. Some of it may be none: WordPiece has no token for spaces, and a
        single one for a word of 100 characters."""
        for characters in (most * CHARACTERS_PER_TOKEN, _SPARSE * most * CHARACTERS_PER_TOKEN):
            part = self._end(text, characters)
            if len(part) == len(text) or len(self.tokenizer.encode(part, add_special_tokens=False)) >= most:
                return part
        raise BadRequest(
            f"{self.name(number)} has less than {most} tokens in {characters} characters: shorten it", self.param
        )

    def _exceeds(self, text: str, most: int) -> bool:
        """Whether a text has more tokens; of one that is not very long they are counted later, and told."""
        return len(text) > PIECE and exceeds(self.tokenizer, text, most)

    def _most(self, asked: int | None) -> int:
        model = longest(self.info)
        if asked == 0:
            raise BadRequest("of a text at least one token is read: ask for more, or for -1, which is all that fit")
        return model if asked in (None, -1) else min(asked or 0, model)

    def _cut(self, ids: list[int], most: int) -> list[int]:
        """The first or last tokens of a text, and the special ones around it."""
        if not self.cut.keeps_end:
            return truncated(ids, most, self.tokenizer.is_special)
        return truncated(ids[::-1], most, self.tokenizer.is_special)[::-1]

    def _end(self, sequence: S, count: int) -> S:
        return sequence[-count:] if self.cut.keeps_end else sequence[:count]

    def _some(self, ids: list[int], number: int) -> list[int]:
        if not ids:
            raise BadRequest(f"{self.name(number)} has no tokens", self.param)
        return ids

    def _too_long(self, number: int, tokens: str, most: int) -> PromptTooLong:
        return PromptTooLong(
            f"{self.name(number)} has {tokens} tokens; this model reads at most {most} of a text: {self.hint}",
            self.param,
        )
