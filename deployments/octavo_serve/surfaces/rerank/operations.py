"""/rerank in its dialects: documents, ordered by how well they answer a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from octavo.errors import BadRequest
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.pooling import accepted, check_number
from octavo_serve.api.service import Service
from octavo_serve.api.texts import Cut, Pair
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.rerank.schemas import (
    AnyRerankRequest,
    Meta,
    Rank,
    Reranked,
    RerankRequest,
    RerankResult,
)
from octavo_serve.surfaces.vectors.fields import usage
from octavo_serve.surfaces.vectors.ranking import Ranking, Scored, prepared

SEARCH_UNIT = 100
"""Documents of one of Cohere's search units."""
_NUMBERS = 8
"""What a result takes to write beside its document, in numbers."""


async def rerank(service: Service, call: Call, version: str = "1") -> Listing:
    """Order a body's documents; as long a part of each is read as fits, as Cohere and Jina do.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: RerankRequest = call.body
    if body.documents is None:
        raise BadRequest("field 'documents' is required", "documents")
    cut = Cut(most=body.truncate_prompt_tokens, most_of_second=body.max_tokens_per_doc or -1)
    found = await _scored(service, call, body, body.documents, "documents", cut, raw=body.use_activation is False)
    order = _order(found, body.top_n)
    repeats = version == "1" if body.return_documents is None else body.return_documents

    def entry(place: int) -> RerankResult:
        index = order[place]
        result: RerankResult = {"index": index, "relevance_score": found.scores[index]}
        if repeats:
            assert body.documents is not None
            result["document"] = {"text": body.documents[index]}
        return result

    meta: Meta = {
        "api_version": {"version": "2" if version == "2" else "1"},
        "billed_units": {"search_units": -(-len(body.documents) // SEARCH_UNIT)},
        "tokens": {"input_tokens": found.prompt_tokens, "output_tokens": 0},
    }
    return Listing(
        count=len(order),
        entry=entry,
        weight=_weight(body.documents if repeats else ()),
        at=("results",),
        before={"id": found.id, "object": "list", "model": found.model},
        after={"meta": meta, "usage": usage(found.prompt_tokens)},
    )


async def rerank_as_asked(service: Service, call: Call) -> Listing:
    """The same, or TEI's, which has another name for the documents and answers with a list alone.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: AnyRerankRequest = call.body
    if body.texts is None:
        return await rerank(service, call)
    if body.documents is not None:
        raise BadRequest("send either documents or texts", "texts")
    texts = body.texts
    left = (body.truncation_direction or "").lower() == "left"
    cut = Cut(most_of_second=-1 if body.truncate else None, keeps_end=left)
    found = await _scored(service, call, body, texts, "texts", cut, raw=bool(body.raw_scores))
    order = _order(found, body.top_n)

    def entry(place: int) -> Rank:
        index = order[place]
        rank: Rank = {"index": index, "score": found.scores[index]}
        return {**rank, "text": texts[index]} if body.return_text else rank

    return Listing(count=len(order), entry=entry, weight=_weight(texts if body.return_text else ()))


async def _scored(
    service: Service, call: Call, body: RerankRequest, documents: Sequence[str], param: str, cut: Cut, *, raw: bool
) -> Scored:
    check_number(len(documents), param)
    if not body.query:
        raise BadRequest("query must not be an empty text", "query")
    asking = body.asking("rerank", "rerank", param)
    hint = "shorten it, or send truncate: true" if param == "texts" else "shorten it"
    pairs = [Pair(body.query, document) for document in documents]
    names = [("query", f"{param}[{number}]") for number in range(len(pairs))]
    async with accepted(service, call.admit(replace(asking, cut=cut, hint=hint)), pairs) as ready:
        ranking = Ranking(pairs=pairs, names=names, raw=raw, asks=True, instruction=body.instruction)
        run = await prepared(ready, ranking)
    return await run()


def _order(found: Scored, top_n: int | None) -> list[int]:
    """Numbers of the documents, the best first; of equal ones, in their order."""
    return sorted(range(len(found.scores)), key=lambda index: -found.scores[index])[: top_n or None]


def _weight(documents: Sequence[str]) -> int:
    """Of a result with its document, in numbers: 64 characters are written as fast as one."""
    return _NUMBERS + (sum(map(len, documents)) // len(documents) // 64 if documents else 0)


V1 = Operation(
    method="POST",
    path="/v1/rerank",
    summary="Order documents by a query: Jina's and Cohere's first",
    answers=Reranked,
    run=rerank,
    errors=ERRORS,
    body=RerankRequest,
    many=True,
)
V2 = replace(V1, path="/v2/rerank", summary="The same as Cohere's second", run=partial(rerank, version="2"))
ANY = replace(
    V1,
    path="/rerank",
    summary="The same, or TEI's",
    answers=Reranked | list[Rank],
    run=rerank_as_asked,
    body=AnyRerankRequest,
)
OPERATIONS = (V1, V2, ANY)
