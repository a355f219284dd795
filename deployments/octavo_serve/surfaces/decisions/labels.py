"""Labels: what a model says in answer to a question, each one token, or two where there are many options.

A label is a word, a letter, a digit, or a letter and a digit. Whether a tokenizer writes one as one token depends on
what it follows, so it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_uppercase, digits

from octavo.errors import BadRequest
from octavo.text.tokenizer import Tokenizer

YES_NO = ("Yes", "No")


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a question's options.

    Attributes:
        texts: one per option.
        groups: token ids of the first tokens.
        members: token ids of the second tokens, the same after each of the first; empty where labels are one token.
    """

    texts: tuple[str, ...]
    groups: tuple[int, ...]
    members: tuple[int, ...] = ()

    @property
    def forks(self) -> int:
        """Prompts that are computed for the question."""
        return 1 + (len(self.groups) if self.members else 0)

    def members_of(self, group: int) -> tuple[int, ...]:
        """Token ids of the second tokens after a first token: the last group may be smaller than the others."""
        return self.members[: len(self.texts) - group * len(self.members)]


class Alphabet:
    """The labels that a tokenizer has after a text, which ends a prompt and so begins an answer.

    Raises:
        BadRequest: it has too few.
    """

    def __init__(self, tokenizer: Tokenizer, ending: str) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(ending, add_special_tokens=False)
        for space in ("", " "):  # some endings want a space before the answer
            self._ending = ending + space
            letters = self._single(ascii_uppercase)
            if letters is not None:
                break
        else:
            raise BadRequest("this model's tokenizer has no tokens for the letters that answers are made of", "model")
        self._letters = letters
        self._words = self._single(YES_NO)
        self._digits = self._single(digits)
        self._second = self._after_letter()

    def predicate(self) -> Labels:
        """Of yes and no, in this order."""
        return Labels(YES_NO, tuple(self._words)) if self._words else self.choice(2)

    def score(self, count: int) -> Labels:
        """Of so many levels, at least one."""
        if self._digits and count <= len(digits):
            return Labels(tuple(digits[:count]), tuple(self._digits[:count]))
        return self.choice(count)

    def choice(self, count: int) -> Labels:
        """Of so many options, at least one."""
        if count <= len(ascii_uppercase):
            return Labels(tuple(ascii_uppercase[:count]), tuple(self._letters[:count]))
        texts = [letter + digit for letter in ascii_uppercase for digit in digits]
        most = len(ascii_uppercase) if self._second is None else len(texts)
        if self._second is None or count > most:
            raise BadRequest(f"this model tells at most {most} options apart: ask for fewer", "questions")
        groups = -(-count // len(digits))
        return Labels(tuple(texts[:count]), tuple(self._letters[:groups]), tuple(self._second))

    def _single(self, texts: Sequence[str]) -> list[int] | None:
        """Token ids of texts that are a token each, all different, after the ending."""
        found = []
        for text in texts:
            ids = self._tokenizer.encode(self._ending + text, add_special_tokens=False)
            if len(ids) != len(self._before) + 1 or ids[:-1] != self._before:
                return None
            found.append(ids[-1])
        return found if len(set(found)) == len(found) else None

    def _after_letter(self) -> list[int] | None:
        """Token ids of the digits after a letter."""
        found = []
        for digit in digits:
            ids = self._tokenizer.encode(self._ending + "A" + digit, add_special_tokens=False)
            if len(ids) != len(self._before) + 2 or ids[-2] != self._letters[0]:
                return None
            found.append(ids[-1])
        return found if len(set(found)) == len(found) else None


@lru_cache(maxsize=64)
def alphabet_of(tokenizer: Tokenizer, ending: str) -> Alphabet:
    """The alphabet, which takes about a millisecond to find, kept for the next request.

    Raises:
        BadRequest: as `Alphabet`.
    """
    return Alphabet(tokenizer, ending)
