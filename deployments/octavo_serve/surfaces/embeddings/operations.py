"""OpenAI's /v1/embeddings: from a body to texts, and from what the engine pooled to vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from octavo.errors import BadRequest
from octavo.pooled import check_dimensions, check_task, vector
from octavo_serve.api.chats import Chat, render
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.pooling import Accepted, Pooled, accepted, pooled
from octavo_serve.api.service import Service
from octavo_serve.api.texts import Text
from octavo_serve.surfaces.embeddings.schemas import Embedding, EmbeddingList, EmbeddingRequest
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.vectors.prompts import prompted
from octavo_serve.surfaces.vectors.texts import named, texts_of
from octavo_serve.surfaces.vectors.writing import as_list, written


async def embeddings(service: Service, call: Call) -> Listing:
    """The vectors of a body's texts.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: EmbeddingRequest = call.body
    if (body.input is None) == (body.messages is None):
        raise BadRequest("send either input or messages", "input")
    texts = [_said(body)] if body.input is None else texts_of(body.input, "input")
    asking = named(body.asking("embd", "embeddings", "input"), texts, body.input)
    async with accepted(service, call.admit(asking), texts) as ready:
        check_task("embed", ready.info.tasks, ready.model.name)
        check_dimensions(body.dimensions, ready.info.pooling)
        if body.input is None:
            ready, texts = await _chat(ready, body)
        texts = prompted(texts, ready.info.pooling, "input", body.prompt_name, body.input_type)
        encoded = await ready.encoded(texts)
    return _answer(body, await pooled(ready, encoded, "embed"))


def _said(body: EmbeddingRequest) -> str:
    """What a chat's messages say, about."""
    return "\n".join(str(message.content or "") for message in body.messages or ()) or " "


async def _chat(ready: Accepted, body: EmbeddingRequest) -> tuple[Accepted, Sequence[Text]]:
    """A chat as the model's template writes it, which puts the special tokens too."""
    chat = Chat(
        messages=body.messages or [],
        variables=body.chat_template_kwargs,
        add_generation_prompt=bool(body.add_generation_prompt),
        continue_final_message=bool(body.continue_final_message),
    )
    text = await render(chat, ready.model.tokenizer, ready.service.template_threads)
    asking = replace(ready.asking, param="messages", name=lambda _: "the chat")
    return replace(ready, asking=replace(asking, add_special_tokens=bool(body.add_special_tokens))), [text]


def _answer(body: EmbeddingRequest, found: Pooled) -> Listing:
    info, base64 = found.info.pooling, body.encoding_format == "base64"

    def entry(number: int) -> Embedding:
        values = vector(found.values[number], info, body.dimensions, normalise=body.normalize)
        return {"object": "embedding", "index": number, "embedding": written(values, body.encoding_format)}

    numbers = body.dimensions or info.dimensions
    return as_list(found, len(found.values), entry, numbers // 3 if base64 else numbers)


EMBEDDINGS = Operation(
    method="POST",
    path="/v1/embeddings",
    summary="Vectors of texts",
    answers=EmbeddingList,
    run=embeddings,
    errors=ERRORS,
    body=EmbeddingRequest,
    many=True,
)
