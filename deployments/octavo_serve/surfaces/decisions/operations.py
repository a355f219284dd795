"""OpenAI's /v1/decisions: from a body to questions, and from probabilities to the answer."""

from __future__ import annotations

import secrets

from octavo.request import SamplingParams
from octavo_serve.api.jobs import Asked
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.surfaces.decisions.deciding import Decided, decide
from octavo_serve.surfaces.decisions.probabilities import best, choice_confidence, expected_level, score_confidence
from octavo_serve.surfaces.decisions.questions import Questions, of_openai
from octavo_serve.surfaces.decisions.schemas import (
    Answer,
    Choice,
    Decision,
    DecisionRequest,
    Predicate,
    Score,
)
from octavo_serve.surfaces.decisions.state import chat_of
from octavo_serve.surfaces.openai.errors import ERRORS


async def decisions(service: Service, call: Call) -> Decision:
    """Answer a body of /v1/decisions.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
        OctavoError: no question could be answered.
    """
    body: DecisionRequest = call.body
    asked, questions = await service.body_threads.run(ask, body)
    decided = await decide(service, call.admit(asked), questions)
    return await service.threads.finish(answer, body, decided, call.tells)


def ask(body: DecisionRequest) -> tuple[Asked, Questions]:
    """What a body asks for.

    Raises:
        BadRequest: a question has no text, an empty option or one twice; an output belongs to no call; or JSON exceeds
            a bound.
    """
    asked = Asked(
        kind="decision",
        model=body.model,
        content=chat_of(body.input),
        param="input",
        params=SamplingParams(max_tokens=1),
        session=body.prompt_cache_key or "",
        cache_salt=secrets.token_hex(16) if _uses_no_cache(body) else "",
    )
    return asked, of_openai(body.questions)


def _uses_no_cache(body: DecisionRequest) -> bool:
    """Explicit mode without a breakpoint: such a request has a namespace of the cache for itself."""
    options = body.prompt_cache_options
    return options is not None and options.mode == "explicit" and not _has_breakpoint(body)


def _has_breakpoint(body: DecisionRequest) -> bool:
    if isinstance(body.input, str):
        return False
    contents = [getattr(item, "content", None) or getattr(item, "output", None) for item in body.input]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(getattr(part, "prompt_cache_breakpoint", None) is not None for part in parts)


def answer(body: DecisionRequest, decided: Decided, tells: bool) -> Decision:
    """The answer to a body.

    Args:
        tells: whether the client may be told about the cache; otherwise its numbers are 0.
    """
    cached, written = (decided.cached_tokens, decided.written_tokens) if tells else (0, 0)
    return {
        "model": decided.model,
        "answers": [_answer(q, p) for q, p in zip(body.questions, decided.probabilities, strict=True)],
        "usage": {
            "input_tokens": decided.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": decided.prompt_tokens,
        },
    }


def _answer(question: Predicate | Choice | Score, probabilities: list[float] | None) -> Answer:
    name = question.name
    if probabilities is None:
        return {"type": "refusal", "name": name}
    if isinstance(question, Predicate):
        return {"type": "predicate", "name": name, "probability": probabilities[0]}
    if isinstance(question, Choice):
        values = [choice.value for choice in question.choices]
        return {
            "type": "choice",
            "name": name,
            "choice": values[best(probabilities)],
            "confidence": choice_confidence(probabilities),
            "probabilities": [{"value": v, "probability": p} for v, p in zip(values, probabilities, strict=True)],
        }
    levels = enumerate(zip(question.levels, probabilities, strict=True))
    return {
        "type": "score",
        "name": name,
        "score": expected_level(probabilities),
        "confidence": score_confidence(probabilities),
        "probabilities": [{"value": i, "label": level.label, "probability": p} for i, (level, p) in levels],
    }


DECISIONS = Operation(
    method="POST",
    path="/v1/decisions",
    summary="Answer questions about an input with probabilities",
    answers=Decision,
    run=decisions,
    errors=ERRORS,
    body=DecisionRequest,
)
