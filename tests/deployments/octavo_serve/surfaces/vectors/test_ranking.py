"""How models compare texts: with a head, by angle, or with a yes or a no."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.pooled import cosine, vector
from octavo_serve.api.pooling import Asking, accepted
from octavo_serve.api.service import Service
from octavo_serve.api.texts import Pair
from octavo_serve.surfaces.vectors.ranking import Ranking, Scored, prepared

PAIRS = [Pair("a question", f"answer {number % 90}") for number in range(100)]
NAMES = [("query", f"documents[{number}]") for number in range(100)]


def scored(service: Service, **fields: Any) -> Scored:
    ranking = Ranking(**{"pairs": PAIRS, "names": NAMES, **fields})

    async def main() -> Scored:
        asking = Asking(kind="score", operation="rerank", model=None, param="documents")
        async with accepted(service, asking, PAIRS) as ready:
            run = await prepared(ready, ranking)
        return await run()

    return asyncio.run(main())


def test_by_angle_each_text_once_with_its_prompt(pooling: Service, pooler: Any) -> None:
    pooler.becomes("embed", prompts={"query": "ask: ", "passage": "tell: "})
    found = scored(pooling, asks=True)
    texts = pooler.texts()
    assert texts == ["ask: a question", *(f"tell: answer {number}" for number in range(90))]
    vectors = [vector(pooler.values(request).tobytes(), pooler.info.pooling) for request in pooler.opened]
    assert found.scores == [cosine(vectors[0], vectors[1 + number % 90]) for number in range(100)]
    del pooler.opened[:]
    scored(pooling)
    assert pooler.texts()[:2] == ["a question", "answer 0"]


def test_by_a_head(pooling: Service, pooler: Any) -> None:
    pooler.becomes("classify", "embed", labels=("best",), activation="sigmoid")
    raw = scored(pooling, raw=True).scores
    assert raw == [float(pooler.values(request)[0]) for request in pooler.opened]
    assert all(0 < score < 1 for score in scored(pooling).scores)


def test_what_is_wrong_is_named(pooling: Service, pooler: Any) -> None:
    long = [*PAIRS[:2], Pair("a question", "word " * 100), *PAIRS[3:]]
    for task in ("embed", "classify"):
        pooler.becomes(task, labels=("best",))
        with pytest.raises(ValueError, match=r"documents\[2\] has"):
            scored(pooling, pairs=long)
    assert pooler.opened == []


def test_by_yes_and_no_where_the_model_writes_text(pooling: Service, pooler: Any) -> None:
    pooler.becomes("generate", "embed", max_tokens=None)
    (entry,) = pooling.models.entries.values()
    entry.defaults = type(entry.defaults)(yes_no=True)
    found = scored(pooling)
    assert all(0 < score < 1 for score in found.scores)
    assert all(request.pooling is None for request in pooler.opened)
