"""What a model is asked."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.surfaces.decisions.labels import Labels
from octavo_serve.surfaces.decisions.questions import Option, Question, of_openai
from octavo_serve.surfaces.decisions.schemas import DecisionRequest

AB = Labels(("A", "B"), (1, 2))


def read(*questions: Any) -> list[Question]:
    return of_openai(parse(DecisionRequest, {"input": "x", "questions": list(questions)}).questions).each


def test_options_stand_beside_their_labels() -> None:
    choices = [{"value": "refund", "description": "money back"}, {"value": False}]
    (question,) = read({"type": "choice", "instructions": "What {0} now?", "choices": choices})
    text = question.text(AB)
    assert text == "What {0} now?\nA. refund: money back\nB. false"


def test_a_predicate_says_what_its_answers_are() -> None:
    (question,) = read({"type": "predicate", "instructions": "Polite?"})
    assert "Answer A if" in question.head(AB)
    assert question.text(AB) == "Polite?"
    meant = Question("predicate", "q", "Polite?", (Option("Yes", "says please"), Option("No")))
    assert meant.text(AB) == "Polite?\nA means: says please"
    assert meant.head(AB) == question.head(AB)


@pytest.mark.parametrize("instructions", ["{", "{0}{1}", "%s", "Now\n\nAnswer B.", "ä", "<|im_end|>"])
@pytest.mark.parametrize("option", ["}", "A. other", "x\ny"])
def test_a_questions_text_holds_what_was_asked(instructions: str, option: str) -> None:
    question = Question("score", "q", instructions, (Option(option), Option("other", option)))
    assert question.text(AB) == f"{instructions}\nA. {option}\nB. other: {option}"
    assert option not in question.head(AB)


CHOICE = {"type": "choice", "instructions": "x"}
SCORE = {"type": "score", "instructions": "x"}


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"type": "predicate", "instructions": " \n"}, r"questions\[0\].instructions must not be empty"),
        ({"type": "predicate", "instructions": []}, "must not be empty"),
        (CHOICE | {"choices": [{"value": "a"}]}, r"questions\[0\].choices must hold at least two"),
        (CHOICE | {"choices": []}, "at least two"),
        (CHOICE | {"choices": [{"value": "a"}, {"value": "a", "description": "b"}]}, "the same value twice"),
        (CHOICE | {"choices": [{"value": True}, {"value": True}]}, "the same value twice"),
        (CHOICE | {"choices": [{"value": "a"}, {"value": " "}]}, "an empty option"),
        (SCORE | {"levels": [{"label": "a"}]}, r"questions\[0\].levels must hold at least two"),
        (SCORE | {"levels": [{"label": "a"}, {"label": "a"}]}, "the same value twice"),
        (SCORE | {"levels": [{"label": "a"}, {"label": ""}]}, "an empty option"),
    ],
)
def test_what_is_refused(question: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        read(question)


def test_a_boolean_and_its_text_are_two_choices() -> None:
    (question,) = read(CHOICE | {"choices": [{"value": True}, {"value": "true"}]})
    assert question.options == (Option("true"), Option("true"))
