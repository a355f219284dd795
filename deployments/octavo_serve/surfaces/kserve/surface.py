"""KServe's Open Inference Protocol over HTTP, with Triton's generate extension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.errors import UnknownModel
from octavo_serve.api.bounds import Limits
from octavo_serve.api.jobs import Asked
from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.kserve.asking import ask_generate, ask_infer, ask_stream
from octavo_serve.surfaces.kserve.errors import ERRORS
from octavo_serve.surfaces.kserve.schemas import Generated, GenerateRequest, Inferred, InferRequest
from octavo_serve.surfaces.kserve.tensors import RAW
from octavo_serve.surfaces.kserve.writer import VERSION, GenerateWriter, InferWriter

PATHS = ("/v2/models/{model:path}/versions/{version}", "/v2/models/{model:path}")
"""Of a model; the first is looked at first, because a model's name may hold slashes."""


def model_of(path: Mapping[str, str]) -> str:
    """The model that a path names.

    Raises:
        UnknownModel: it asks for a version that no model has.
    """
    model, version = path["model"], path.get("version", VERSION)
    if version != VERSION:
        raise UnknownModel(f"model {model!r:.80} has the version {VERSION} alone, not {version!r:.20}", "version")
    return model


def _infer(path: str) -> Surface[InferRequest, Inferred, Generated]:
    return Surface(
        path=f"{path}/infer",
        summary="KServe: continue a text that is a tensor",
        body=InferRequest,
        answers=Inferred,
        events=None,
        streams=lambda body: False,
        ask=ask_infer,
        model_of=model_of,
        raw=RAW,
        writer=InferWriter,
        errors=ERRORS,
    )


def _generate(
    path: str, summary: str, ask: Callable[[GenerateRequest, Limits], Asked], *, streams: bool
) -> Surface[GenerateRequest, Generated, Generated]:
    return Surface(
        path=path,
        summary=summary,
        body=GenerateRequest,
        answers=None if streams else Generated,
        events=Generated if streams else None,
        streams=lambda body: streams,
        ask=ask,
        model_of=model_of,
        writer=GenerateWriter,
        errors=ERRORS,
    )


SURFACES: tuple[Surface[Any, Any, Any], ...] = tuple(
    surface
    for path in PATHS
    for surface in (
        _infer(path),
        _generate(f"{path}/generate", "Triton: continue a text", ask_generate, streams=False),
        _generate(f"{path}/generate_stream", "Triton: continue a text, part by part", ask_stream, streams=True),
    )
)
