"""vLLM's /score: how well texts answer texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from octavo.errors import BadRequest
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.pooling import accepted, check_number
from octavo_serve.api.service import Service
from octavo_serve.api.texts import Pair
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.scoring.schemas import Score, ScoreRequest, Scores
from octavo_serve.surfaces.vectors.ranking import Ranking, prepared
from octavo_serve.surfaces.vectors.writing import as_list

_NAMES = ("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")
_NUMBERS = 8
"""What an entry takes to write, in numbers."""


async def score(service: Service, call: Call) -> Listing:
    """The scores of a body's pairs.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: ScoreRequest = call.body
    pairs, names = pairs_of(body)
    raw = False in (body.use_activation, body.activation)
    asking = body.asking("score", "rerank", names[0][1].partition("[")[0])
    async with accepted(service, call.admit(asking), pairs) as ready:
        ranking = Ranking(pairs=pairs, names=names, raw=raw, instruction=body.instruction)
        run = await prepared(ready, ranking)
    found = await run()

    def entry(number: int) -> Score:
        return {"index": number, "object": "score", "score": found.scores[number]}

    return as_list(found, len(pairs), entry, _NUMBERS)


def pairs_of(body: ScoreRequest) -> tuple[Sequence[Pair], Sequence[tuple[str, str]]]:
    """The pairs of a body, and what their texts are called; one text beside many is compared with each.

    Raises:
        BadRequest: there are none, more of one than of the other, or too many.
    """
    sent = [names for names in _NAMES if any(getattr(body, name) is not None for name in names)]
    if len(sent) != 1:
        raise BadRequest("send either text_1 and text_2, or queries and documents", "text_1")
    (first, second), (some, others) = sent[0], ([], [])
    some, others = (_listed(getattr(body, name), name) for name in (first, second))
    if len(some) not in (1, len(others)):
        raise BadRequest(
            f"{first} has {len(some)} texts and {second} {len(others)}: send one, or as many as of the other", first
        )
    count = len(others)
    firsts = some * count if len(some) == 1 else some
    before = [first] * count if len(some) == 1 else [f"{first}[{number}]" for number in range(count)]
    names = [(before[number], f"{second}[{number}]") for number in range(count)]
    return [Pair(a, b) for a, b in zip(firsts, others, strict=True)], names


def _listed(texts: str | list[str] | None, name: str) -> list[str]:
    if texts is None:
        raise BadRequest(f"field {name!r} is required", name)
    listed = [texts] if isinstance(texts, str) else texts
    check_number(len(listed), name)
    return listed


SCORE = Operation(
    method="POST",
    path="/score",
    summary="vLLM: how well texts answer texts",
    answers=Scores,
    run=score,
    errors=ERRORS,
    body=ScoreRequest,
    many=True,
)
OPERATIONS = (SCORE, replace(SCORE, path="/v1/score", summary="The same"))
