"""huggingface_hub's `InferenceClient`, which speaks TEI's protocol."""

from __future__ import annotations

from cases import CAPITAL, DOCUMENTS, EMBEDDER, URL, check, check_near, run
from huggingface_hub import InferenceClient

CLIENT = InferenceClient(f"{URL}/models/{EMBEDDER}", timeout=60)


def feature_extraction() -> None:
    query = CLIENT.feature_extraction(CAPITAL, normalize=True)
    documents = [CLIENT.feature_extraction(text, normalize=True, truncate=True) for text in DOCUMENTS]
    check_near(query.reshape(-1).tolist(), [vector.reshape(-1).tolist() for vector in documents])


def several_texts() -> None:
    query, *documents = CLIENT.feature_extraction([CAPITAL, *DOCUMENTS]).tolist()
    check_near(query, documents)


def sentence_similarity() -> None:
    said = CLIENT.sentence_similarity(CAPITAL, other_sentences=DOCUMENTS)
    check(len(said) == 3 and said[1] == max(said), said)


run("hub", "huggingface_hub", feature_extraction, several_texts, sentence_similarity)
