"""LlamaIndex's embeddings for OpenAI-compatible servers."""

from __future__ import annotations

from cases import CAPITAL, DOCUMENTS, EMBEDDER, URL, check_near, run
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

GIVEN = {"model_name": EMBEDDER, "api_base": f"{URL}/v1", "api_key": "none", "max_retries": 0, "timeout": 60}


def embeddings() -> None:
    model = OpenAILikeEmbedding(**GIVEN)
    check_near(model.get_query_embedding(CAPITAL), model.get_text_embedding_batch(DOCUMENTS))


def in_batches_of_two() -> None:
    model = OpenAILikeEmbedding(**GIVEN, embed_batch_size=2, dimensions=128)
    check_near(model.get_text_embedding(CAPITAL), model.get_text_embedding_batch(DOCUMENTS), 128)


async def embeddings_async() -> None:
    model = OpenAILikeEmbedding(**GIVEN)
    check_near(await model.aget_query_embedding(CAPITAL), await model.aget_text_embedding_batch(DOCUMENTS))


run("llama-index", "llama-index-embeddings-openai-like", embeddings, in_batches_of_two, embeddings_async)
