"""TEI's /embed, /predict and /similarity; its /rerank is beside the others (`surfaces.rerank`)."""

from __future__ import annotations

from octavo.errors import BadRequest
from octavo.pooled import check_dimensions, check_task, probabilities, vector
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.pooling import Pooled, accepted, check_number, pooled
from octavo_serve.api.service import Service
from octavo_serve.api.texts import Pair
from octavo_serve.surfaces.tei.errors import ERRORS
from octavo_serve.surfaces.tei.schemas import (
    EmbedRequest,
    Prediction,
    PredictRequest,
    SimilarityParameters,
    SimilarityRequest,
)
from octavo_serve.surfaces.vectors.prompts import prompted
from octavo_serve.surfaces.vectors.ranking import Ranking, prepared
from octavo_serve.surfaces.vectors.texts import named, texts_of

_NUMBERS = 16
"""What a class's score takes to write, in numbers."""


async def embed(service: Service, call: Call) -> Listing:
    """The vectors of a body's texts.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: EmbedRequest = call.body
    texts = texts_of(body.inputs, "inputs")
    asking = named(body.asking("embed", "embeddings", body.cut), texts, body.inputs)
    async with accepted(service, call.admit(asking), texts) as ready:
        check_task("embed", ready.info.tasks, ready.model.name)
        check_dimensions(body.dimensions, ready.info.pooling)
        encoded = await ready.encoded(prompted(texts, ready.info.pooling, "inputs", body.prompt_name))
    found = await pooled(ready, encoded, "embed")
    info, normalise = found.info.pooling, body.normalize is not False

    def entry(number: int) -> list[float]:
        numbers: list[float] = vector(found.values[number], info, body.dimensions, normalise=normalise).tolist()
        return numbers

    return Listing(count=len(found.values), entry=entry, weight=body.dimensions or info.dimensions)


async def embed_all(service: Service, call: Call) -> Listing:
    """Refuse what is not made here.

    Raises:
        BadRequest: always.
    """
    raise BadRequest("vectors of single tokens are not made here: /embed makes one of a text", "inputs")


async def predict(service: Service, call: Call) -> Listing:
    """The classes of a body's texts or pairs, the likeliest first.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: PredictRequest = call.body
    texts, alone = body.inputs
    asking = body.asking("predict", "classify", body.cut)
    async with accepted(service, call.admit(asking), texts) as ready:
        check_task("classify", ready.info.tasks, ready.model.name)
        encoded = await ready.encoded(texts)
    found = await pooled(ready, encoded, "classify")
    raw, classes = bool(body.raw_scores), len(found.info.pooling.labels)
    if alone:
        made = _predictions(found, 0, raw=raw)
        return Listing(count=len(made), entry=made.__getitem__)
    weight = _NUMBERS * max(1, classes)
    return Listing(count=len(texts), entry=lambda number: _predictions(found, number, raw=raw), weight=weight)


def _predictions(found: Pooled, number: int, *, raw: bool) -> list[Prediction]:
    info = found.info.pooling
    scores = probabilities(found.values[number], info, activation=not raw).tolist()
    labels = info.labels or [f"LABEL_{index}" for index in range(len(scores))]
    made: list[Prediction] = [{"score": s, "label": label} for s, label in zip(scores, labels, strict=True)]
    return sorted(made, key=lambda prediction: -prediction["score"])


async def similarity(service: Service, call: Call) -> Listing:
    """How alike a text and others are.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: SimilarityRequest = call.body
    source, sentences = body.inputs.source_sentence, body.inputs.sentences
    check_number(len(sentences), "inputs.sentences")
    parameters = body.parameters or SimilarityParameters()
    asking = body.asking("similarity", "embeddings", parameters.cut)
    count = range(len(sentences))
    names = [("inputs.source_sentence", f"inputs.sentences[{number}]") for number in count]
    async with accepted(service, call.admit(asking), [source, *sentences]) as ready:
        check_task("embed", ready.info.tasks, ready.model.name)
        first, *others = prompted([source, *sentences], ready.info.pooling, "inputs", parameters.prompt_name)
        run = await prepared(ready, Ranking(pairs=[Pair(str(first), str(other)) for other in others], names=names))
    found = await run()
    return Listing(count=len(sentences), entry=found.scores.__getitem__)


EMBED = Operation(
    method="POST",
    path="/embed",
    summary="TEI: vectors of texts",
    answers=list[list[float]],
    run=embed,
    errors=ERRORS,
    body=EmbedRequest,
    many=True,
)
EMBED_ALL = Operation(
    method="POST",
    path="/embed_all",
    summary="TEI: vectors of single tokens, which are not made here",
    answers=list[list[list[float]]],
    run=embed_all,
    errors=ERRORS,
    body=EmbedRequest,
)
PREDICT = Operation(
    method="POST",
    path="/predict",
    summary="TEI: the classes of texts or of pairs",
    answers=list[Prediction] | list[list[Prediction]],
    run=predict,
    errors=ERRORS,
    body=PredictRequest,
    many=True,
)
SIMILARITY = Operation(
    method="POST",
    path="/similarity",
    summary="TEI: how alike a text and others are",
    answers=list[float],
    run=similarity,
    errors=ERRORS,
    body=SimilarityRequest,
    many=True,
)
OPERATIONS = (EMBED, EMBED_ALL, PREDICT, SIMILARITY)
