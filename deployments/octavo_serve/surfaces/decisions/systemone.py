"""TypeSafe's /v1/systemone: the same questions as OpenAI's decisions, in other words."""

from __future__ import annotations

from octavo.request import SamplingParams
from octavo_serve.api.jobs import Asked
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.surfaces.decisions.deciding import Decided, decide
from octavo_serve.surfaces.decisions.probabilities import best, choice_confidence, expected_level, score_confidence
from octavo_serve.surfaces.decisions.questions import YES_OR_NO, Option, Question, Questions, together
from octavo_serve.surfaces.decisions.state import chat_of
from octavo_serve.surfaces.decisions.systemone_schemas import (
    LabelAnswer,
    LabelledChoice,
    Noul,
    NoulAnswer,
    Rubric,
    RubricAnswer,
    SystemOneAnswer,
    SystemOneRequest,
)
from octavo_serve.surfaces.decisions.text import json_text
from octavo_serve.surfaces.openai.errors import ERRORS


async def system_one(service: Service, call: Call) -> SystemOneAnswer:
    """Answer a body of /v1/systemone.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
        OctavoError: no question could be answered.
    """
    body: SystemOneRequest = call.body
    asked, questions = await service.body_threads.run(ask, body)
    decided = await decide(service, call.admit(asked), questions)
    return await service.threads.finish(answer, body, questions, decided, call.tells)


def ask(body: SystemOneRequest) -> tuple[Asked, Questions]:
    """What a body asks for.

    Raises:
        BadRequest: a question has no text or an empty option, or JSON exceeds a bound.
    """
    chat = chat_of(json_text(body.state, "state"))
    asked = Asked(kind="systemone", model=body.model, content=chat, param="state", params=SamplingParams(max_tokens=1))
    return asked, together([_question(question, f"questions.{name}") for name, question in body.questions.items()])


def _question(asked: Noul | LabelledChoice | Rubric, param: str) -> Question:
    instructions = json_text(asked.instructions, f"{param}.instructions")
    param_of_criteria = f"{param}.criteria"
    if isinstance(asked, Noul):
        options: tuple[Option, ...] = YES_OR_NO
        if asked.criteria is not None:
            meanings = (json_text(asked.criteria.get(x) or "", param_of_criteria) for x in ("true", "false"))
            options = tuple(Option(o.text, meaning) for o, meaning in zip(YES_OR_NO, meanings, strict=True))
        return Question("predicate", param, instructions, options)
    if isinstance(asked, LabelledChoice):
        options = tuple(Option(label, json_text(x or "", param_of_criteria)) for label, x in asked.criteria.items())
        return Question("choice", param, instructions, options)
    levels = tuple(Option(json_text(level, param_of_criteria)) for level in asked.criteria)
    return Question("score", param, instructions, levels)


def answer(body: SystemOneRequest, questions: Questions, decided: Decided, tells: bool) -> SystemOneAnswer:
    """The answer to a body.

    Args:
        tells: whether the client may be told about the cache.
    """
    found = zip(body.questions, questions.each, decided.probabilities, strict=True)
    answered = {name: _answer(question, p) for name, question, p in found if p is not None}
    told: SystemOneAnswer = {
        "model": decided.model,
        "answers": answered,
        "usage": {"input_tokens": decided.prompt_tokens, "output_tokens": 0},
    }
    if tells:
        told["usage"]["cached_tokens"] = decided.cached_tokens
    return told


def _answer(question: Question, probabilities: list[float]) -> NoulAnswer | LabelAnswer | RubricAnswer:
    if question.kind == "predicate":
        return {"type": "noul", "noul": probabilities[0]}
    if question.kind == "choice":
        return {
            "type": "choice",
            "choice": question.options[best(probabilities)].text,
            "confidence": choice_confidence(probabilities),
            "probabilities": {o.text: p for o, p in zip(question.options, probabilities, strict=True)},
        }
    return {
        "type": "score",
        "score": expected_level(probabilities),
        "confidence": score_confidence(probabilities),
        "legend": {str(level): option.text for level, option in enumerate(question.options)},
        "probabilities": {str(level): p for level, p in enumerate(probabilities)},
    }


SYSTEM_ONE = Operation(
    method="POST",
    path="/v1/systemone",
    summary="The same in TypeSafe's words",
    answers=SystemOneAnswer,
    run=system_one,
    errors=ERRORS,
    body=SystemOneRequest,
)
