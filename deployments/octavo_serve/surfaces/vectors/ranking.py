"""How well one text answers another, by whatever the model can: a head that reads both, the angle between their
vectors, or how much likelier "yes" is than "no" behind a prompt with both (`yes_no`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from octavo.pooled import check_task, cosine, probabilities, score_task, vector
from octavo.pooling import Task
from octavo_serve.api.pooling import Accepted, Pooled, pooled
from octavo_serve.api.texts import Cut, Encoded, Pair
from octavo_serve.surfaces.vectors.prompts import prompt_of
from octavo_serve.surfaces.vectors.yes_no import YesNo

FEW = 64
"""Scores that take about a millisecond to make."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of a request's pairs.

    Attributes:
        id: of the request.
        model: its name.
        scores: by pair; larger is better.
    """

    id: str
    model: str
    prompt_tokens: int
    scores: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What to compare, and how.

    Attributes:
        names: of each pair's two texts, for errors.
        raw: scores are the head's logits, before the model's activation.
        asks: the first texts are queries and the second ones documents, where the model has prompts for these.
        instruction: what the second text is to be good for, in words: for models that answer yes or no.
    """

    pairs: Sequence[Pair]
    names: Sequence[tuple[str, str]]
    raw: bool = False
    asks: bool = False
    instruction: str | None = None


Run = Callable[[], Awaitable[Scored]]


async def prepared(ready: Accepted, ranking: Ranking) -> Run:
    """Encode and check all pairs; what is returned runs them.

    Raises:
        BadRequest: naming the text that is wrong; the model cannot compare texts.
    """
    if ready.model.defaults.yes_no and "generate" in ready.info.tasks:
        return await _by_answers(ready, ranking)
    if "generate" in ready.info.tasks and len(ready.info.tasks) == 1:
        check_task("embed", ready.info.tasks, ready.model.name)
    if score_task(ready.info.pooling) == "classify":
        return await _by_head(ready, ranking)
    return await _by_angle(ready, ranking)


def _of_pairs(ready: Accepted, ranking: Ranking) -> Accepted:
    """The same, whose errors name a pair's second text."""
    return replace(ready, asking=replace(ready.asking, name=lambda number: ranking.names[number][1]))


async def _by_answers(ready: Accepted, ranking: Ranking) -> Run:
    ready = _of_pairs(ready, ranking)
    model = YesNo(ready, ranking.instruction)
    encoded = await ready.encoded(ranking.pairs, model.encode)

    async def run() -> Scored:
        request_id, tokens, scores = await model.scores(encoded, raw=ranking.raw)
        return Scored(request_id, ready.model.name, tokens, scores)

    return run


async def _by_head(ready: Accepted, ranking: Ranking) -> Run:
    encoded = await _of_pairs(ready, ranking).encoded(ranking.pairs)

    def score(found: Pooled, number: int) -> float:
        return float(probabilities(found.values[number], found.info.pooling, activation=not ranking.raw)[0])

    return partial(_run, ready, encoded, len(ranking.pairs), "classify", score)


async def _by_angle(ready: Accepted, ranking: Ranking) -> Run:
    info = ready.info.pooling
    before = [prompt_of(info, None, "query"), prompt_of(info, None, "document")] if ranking.asks else ["", ""]
    numbers, names = dict[str, int](), list[str]()

    def number_of(prompt: str, text: str, name: str) -> int:
        if (number := numbers.setdefault(prompt + text, len(names))) == len(names):
            names.append(name)
        return number

    ends = [
        (number_of(before[0], pair.first, of[0]), number_of(before[1], pair.second, of[1]))
        for pair, of in zip(ranking.pairs, ranking.names, strict=True)
    ]
    cut = ready.asking.cut
    most = cut.most if cut.most_of_second is None else cut.most_of_second
    asking = replace(ready.asking, name=names.__getitem__, cut=Cut(most=most, keeps_end=cut.keeps_end))
    encoded = await replace(ready, asking=asking).encoded(list(numbers))

    def score(found: Pooled, number: int) -> float:
        first, second = (vector(found.values[end], info) for end in ends[number])
        return cosine(first, second)

    return partial(_run, ready, encoded, len(ends), "embed", score)


async def _run(
    ready: Accepted, encoded: list[Encoded], count: int, task: Task, score: Callable[[Pooled, int], float]
) -> Scored:
    found = await pooled(ready, encoded, task)

    def scores() -> list[float]:
        return [score(found, number) for number in range(count)]

    made = scores() if count <= FEW else await ready.service.threads.finish(scores)
    return Scored(found.id, found.model, found.prompt_tokens, made)
