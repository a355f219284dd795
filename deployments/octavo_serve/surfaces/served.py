"""The protocols that the gateway serves: each has a folder, and lines here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo_serve.api.operation import Operation
from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.adapters.operations import OPERATIONS as FOR_ADAPTERS
from octavo_serve.surfaces.batches.operations import OPERATIONS as OF_BATCHES
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.surface import COMPLETIONS
from octavo_serve.surfaces.decisions.operations import DECISIONS
from octavo_serve.surfaces.decisions.systemone import SYSTEM_ONE
from octavo_serve.surfaces.embeddings.cohere import COHERE
from octavo_serve.surfaces.embeddings.operations import EMBEDDINGS
from octavo_serve.surfaces.explain.operations import EXPLAIN, REQUESTS
from octavo_serve.surfaces.kserve.operations import OPERATIONS as OF_KSERVE
from octavo_serve.surfaces.kserve.surface import SURFACES as FOR_KSERVE
from octavo_serve.surfaces.messages.counting import COUNT
from octavo_serve.surfaces.messages.surface import MESSAGES
from octavo_serve.surfaces.rerank.operations import OPERATIONS as OF_RERANK
from octavo_serve.surfaces.responses.operations import OPERATIONS as OF_RESPONSES
from octavo_serve.surfaces.responses.surface import RESPONSES
from octavo_serve.surfaces.scoring.classify import OPERATIONS as OF_CLASSES
from octavo_serve.surfaces.scoring.score import OPERATIONS as OF_SCORES
from octavo_serve.surfaces.tei.operations import OPERATIONS as OF_TEI
from octavo_serve.surfaces.tei.root import ROOT
from octavo_serve.surfaces.tgi.info import INFO
from octavo_serve.surfaces.tgi.surface import COMPAT, COMPAT_OF_MODEL, GENERATE, GENERATE_STREAM
from octavo_serve.surfaces.tokens.operations import DETOKENIZE, TOKENIZE
from octavo_serve.surfaces.usage.operations import USAGE
from octavo_serve.surfaces.weights.operations import OPERATIONS as OF_WEIGHTS

FOR_TGI = GENERATE, GENERATE_STREAM, replace(COMPAT, instead=ROOT), replace(COMPAT_OF_MODEL, instead=ROOT)
SURFACES: tuple[Surface[Any, Any, Any], ...] = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, *FOR_TGI, *FOR_KSERVE)
OPERATIONS: tuple[Operation, ...] = (
    *(COUNT, DECISIONS, SYSTEM_ONE, TOKENIZE, DETOKENIZE, INFO, EMBEDDINGS, COHERE, EXPLAIN, REQUESTS),
    *(*OF_RERANK, *OF_SCORES, *OF_CLASSES, *OF_TEI),
    *OF_RESPONSES,
    *OF_KSERVE,
    *FOR_ADAPTERS,
    *OF_WEIGHTS,
    *OF_BATCHES,
    USAGE,
)
_WHOLE = [one.path for one in SURFACES if one.answers is not None and one.raw is None]
_ASKING = [one.path for one in OPERATIONS if one.method == "POST" and one.body is not None and one.asks]
BATCHED = frozenset(path for path in (*_WHOLE, *_ASKING) if "{" not in path)
"""Paths that a batch may be for: they take JSON, answer with JSON, and ask a model."""
