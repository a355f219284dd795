"""Routes about the server and its models: /version, /ping, /tokenizer_info, /openapi.json, /docs."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from octavo import __version__
from octavo_serve.api.operation import Operation
from octavo_serve.api.service import Service
from octavo_serve.api.surface import Surface
from octavo_serve.http.describe import openapi, page
from octavo_serve.http.replies import json_reply
from octavo_serve.http.schemas import TokenizerInfo


def add_about(
    app: Starlette, service: Service, surfaces: tuple[Surface[Any, Any, Any], ...], operations: tuple[Operation, ...]
) -> None:
    """Add the routes; Starlette adds HEAD to every GET."""

    async def version(request: Request) -> Response:
        return json_reply({"version": __version__})

    async def ping(request: Request) -> Response:
        return Response(status_code=200 if service.models.can_answer else 503)

    async def tokenizer_info(request: Request) -> Response:
        return json_reply(await _tokenizer_info(service, request.query_params.get("model")))

    async def description(request: Request) -> Response:
        return Response(openapi(surfaces, operations), media_type="application/json")

    async def docs(request: Request) -> Response:
        return Response(page(surfaces, operations), media_type="text/html; charset=utf-8")

    app.add_route("/version", version, methods=["GET"])
    app.add_route("/ping", ping, methods=["GET", "POST"])
    app.add_route("/tokenizer_info", tokenizer_info, methods=["GET"])
    app.add_route("/openapi.json", description, methods=["GET"])
    app.add_route("/docs", docs, methods=["GET"])


async def _tokenizer_info(service: Service, name: str | None) -> TokenizerInfo:
    """vLLM's format, which describes the tokenizer as transformers would, so the class is that of its fast
    tokenizers."""
    model = await service.models.served(name)
    tokenizer = model.tokenizer
    special: Any = dict(tokenizer.special_tokens)
    return {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": tokenizer.chat_template,
        "model_max_length": (await model.client.describe()).max_model_len,
        "vocab_size": tokenizer.vocab_size,
        "eos_token_ids": sorted(tokenizer.eos_token_ids),
    }
