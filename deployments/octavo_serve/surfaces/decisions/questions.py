"""Questions, whatever the protocol, and the text that asks a model for an answer's label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from octavo.errors import BadRequest
from octavo_serve.surfaces.decisions.labels import Alphabet, Labels
from octavo_serve.surfaces.decisions.schemas import Choice, Predicate, Score
from octavo_serve.surfaces.decisions.text import text_of

Kind = Literal["predicate", "choice", "score"]


@dataclass(frozen=True, slots=True)
class Option:
    """What a question may be answered with.

    Attributes:
        text: the choice or level.
        description: what it stands for; "" for none.
    """

    text: str
    description: str = ""


YES_OR_NO = (Option("Yes"), Option("No"))


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        param: the field that holds it.
        options: of a predicate yes and no; of a score from the lowest level to the highest.
    """

    kind: Kind
    param: str
    instructions: str
    options: tuple[Option, ...] = YES_OR_NO

    def __post_init__(self) -> None:
        if not self.instructions.strip():
            raise BadRequest(f"{self.param}.instructions must not be empty", self.param)
        if any(not option.text.strip() for option in self.options):
            raise BadRequest(f"{self.param} has an empty option: give each a text", self.param)

    def labels(self, alphabet: Alphabet) -> Labels:
        """The labels of its options.

        Raises:
            BadRequest: the model cannot tell so many apart.
        """
        if self.kind == "predicate":
            return alphabet.predicate()
        count = len(self.options)
        return alphabet.score(count) if self.kind == "score" else alphabet.choice(count)

    def head(self, labels: Labels) -> str:
        """What follows the input in the prompts of all questions of its kind."""
        return _HEADS[self.kind].format(*labels.texts[:2])

    def text(self, labels: Labels) -> str:
        """What follows the head. It depends on nothing but the question and its labels."""
        return "\n".join([self.instructions, *self._lines(labels)])

    def _lines(self, labels: Labels) -> Iterator[str]:
        for label, option in zip(labels.texts, self.options, strict=True):
            if self.kind != "predicate":
                yield f"{label}. {option.text}" + (f": {option.description}" if option.description else "")
            elif option.description:
                yield f"{label} means: {option.description}"


_HEADS: dict[Kind, str] = {
    "predicate": (
        "A question about the input above, or a statement about it, follows. Answer {0} if the answer is yes or the "
        "statement is true, and {1} otherwise. Write nothing else.\n\n"
    ),
    "choice": (
        "A question about the input above and its options follow. Answer with the label of the option that fits best. "
        "Write nothing else.\n\n"
    ),
    "score": (
        "Something by which to rate the input above follows, and levels from the lowest to the highest. Answer with "
        "the label of the level that fits best. Write nothing else.\n\n"
    ),
}
"""Fixed text comes before the question's own, so that it is computed once for all questions of a kind."""


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a request.

    Attributes:
        characters: of all they say; counted once, beside the event loop.
    """

    each: list[Question]
    characters: int


def together(each: list[Question]) -> Questions:
    """The questions of a request."""
    options = (option for question in each for option in question.options)
    count = sum(len(option.text) + len(option.description) for option in options)
    return Questions(each, count + sum(len(question.instructions) for question in each))


def of_openai(asked: Sequence[Predicate | Choice | Score]) -> Questions:
    """The questions of a body of /v1/decisions.

    Raises:
        BadRequest: one has no text, an empty option, or the same option twice.
    """
    return together([_of_openai(question, f"questions[{number}]") for number, question in enumerate(asked)])


def _of_openai(asked: Predicate | Choice | Score, param: str) -> Question:
    instructions = text_of(asked.instructions, f"{param}.instructions")
    if isinstance(asked, Predicate):
        return Question("predicate", param, instructions)
    if isinstance(asked, Choice):
        values = [(type(choice.value), choice.value) for choice in asked.choices]
        _check(values, f"{param}.choices")
        options = [Option(_written(choice.value), choice.description or "") for choice in asked.choices]
        return Question("choice", param, instructions, tuple(options))
    _check([level.label for level in asked.levels], f"{param}.levels")
    return Question("score", param, instructions, tuple(Option(x.label, x.description or "") for x in asked.levels))


def _check(values: Sequence[object], param: str) -> None:
    if len(values) < 2:
        raise BadRequest(f"{param} must hold at least two, of which one is chosen", param)
    if len(set(values)) < len(values):
        raise BadRequest(f"{param} holds the same value twice: each must be unique", param)


def _written(value: str | bool) -> str:
    return value if isinstance(value, str) else "true" if value else "false"
