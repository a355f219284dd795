"""Qwen3-Reranker's prompt, and the probability of its yes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from octavo.errors import BadRequest, PromptTooLong
from octavo_serve.api.pooling import Asking, accepted
from octavo_serve.api.service import Service
from octavo_serve.api.texts import Cut, Pair
from octavo_serve.surfaces.vectors.yes_no import YesNo, sigmoid

PAIRS = [Pair("Is it a city?", "Paris is."), Pair("Is it a city?", "Bread is not.")]


@pytest.fixture
def ranker(pooler: Any) -> Any:
    pooler.becomes("generate", "embed", max_tokens=None)
    return pooler


def scores(service: Service, pairs: Any = PAIRS, *, raw: bool = False, cut: Any = None, **fields: Any) -> list[float]:
    asking = Asking(kind="score", operation="rerank", model=None, param="documents", cut=cut or Cut())

    async def main() -> list[float]:
        async with accepted(service, asking, pairs) as ready:
            model = YesNo(ready, **fields)
            encoded = await ready.encoded(pairs, model.encode)
        return (await model.scores(encoded, raw=raw))[2]

    return asyncio.run(main())


def test_the_prompt_and_the_score(pooling: Service, ranker: Any) -> None:
    found = scores(pooling, instruction="Find cities")
    told = ranker.texts()[0]
    assert told.startswith("<|im_start|>system\nJudge whether the Document meets")
    body = "<|im_start|>user\n<Instruct>: Find cities\n<Query>: Is it a city?\n<Document>: Paris is.<|im_end|>\n"
    assert told.endswith(f"{body}<|im_start|>assistant\n<think>\n\n</think>\n\n")
    encode = ranker.tokenizer.encode
    for request, score in zip(ranker.opened, found, strict=True):
        assert request.params.logprob_token_ids == [*encode("yes"), *encode("no")]
        yes, no = (math.exp(float(value)) for value in ranker.values(request)[:2])
        assert score == pytest.approx(yes / (yes + no))
    assert [sigmoid(value) for value in scores(pooling, raw=True, instruction="Find cities")] == found


def test_the_first_runs_before_the_others(pooling: Service, ranker: Any) -> None:
    """So that they find what they share with it in the cache."""
    ranker.turns, started = 20, []
    whole = ranker.generate

    def generate(request: Any) -> Any:
        started.append(ranker.running)
        return whole(request)

    ranker.generate = generate
    scores(pooling, PAIRS * 10)
    assert started[1] == 0
    assert ranker.most == 19


def test_long_documents(pooling: Service, ranker: Any) -> None:
    long = [Pair("Is it a city?", "word " * 500)]
    with pytest.raises(PromptTooLong, match=r"documents and the query have more than the \d+ tokens"):
        scores(pooling, long)
    scores(pooling, long, cut=Cut(most_of_second=-1))
    assert len(ranker.opened[-1].prompt_token_ids) == 255
    scores(pooling, long, cut=Cut(most_of_second=3))
    assert ranker.texts()[-1].count("word") == 3
    with pytest.raises(PromptTooLong):
        scores(pooling, [Pair("word " * 500, "a")], cut=Cut(most_of_second=-1))


def test_a_model_without_the_words(pooling: Service, ranker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ranker.tokenizer), "token_id", lambda self, piece: None)
    with pytest.raises(BadRequest, match="no tokens for yes and no"):
        scores(pooling)


def test_sigmoid() -> None:
    assert [sigmoid(value) for value in (-1e4, 0.0, 1e4)] == [0.0, 0.5, 1.0]
