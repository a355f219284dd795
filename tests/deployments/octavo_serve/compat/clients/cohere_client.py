"""Cohere's SDK, both versions of its API."""

from __future__ import annotations

import cohere
from cases import CAPITAL, DOCUMENTS, EMBEDDER, URL, check, check_near, run

FIRST, SECOND = [make("none", base_url=URL, timeout=60) for make in (cohere.Client, cohere.ClientV2)]
ASKED = {"model": EMBEDDER, "query": CAPITAL, "documents": DOCUMENTS}


def rerank() -> None:
    for client in (FIRST, SECOND):
        said = client.rerank(**ASKED)
        scores = [result.relevance_score for result in said.results]
        check(said.results[0].index == 1 and scores == sorted(scores, reverse=True) and len(scores) == 3, said)


def rerank_top() -> None:
    for said in (FIRST.rerank(**ASKED, top_n=1), SECOND.rerank(**ASKED, top_n=1, max_tokens_per_doc=64)):
        check([result.index for result in said.results] == [1], said)


def rerank_returning_documents() -> None:
    said = FIRST.rerank(**ASKED, return_documents=True)
    check(said.results[0].document.text == DOCUMENTS[1], said)


def embed() -> None:
    said = SECOND.embed(model=EMBEDDER, texts=[CAPITAL], input_type="search_query", embedding_types=["float"])
    documents = SECOND.embed(model=EMBEDDER, texts=DOCUMENTS, input_type="search_document", embedding_types=["float"])
    check_near(said.embeddings.float_[0], documents.embeddings.float_)


run("cohere", "cohere", rerank, rerank_top, rerank_returning_documents, embed)
