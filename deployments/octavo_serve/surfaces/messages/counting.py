"""Counts the tokens of the prompt that /v1/messages would make."""

from __future__ import annotations

from octavo_serve.api.chats import render
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.prompts import check_tokenized, is_long
from octavo_serve.api.service import Service
from octavo_serve.surfaces.messages.answers import TokenCount
from octavo_serve.surfaces.messages.asking import chat_of
from octavo_serve.surfaces.messages.errors import ERRORS
from octavo_serve.surfaces.messages.schemas import PromptBody


async def count(service: Service, call: Call) -> TokenCount:
    """The number of tokens.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: PromptBody = call.body
    chat = chat_of(body)
    model = await service.models.served(body.model, call.session, chat.check)
    text = await render(chat, model.tokenizer, service.template_threads, model.defaults.response_template)
    check_tokenized(text, (await model.client.describe()).max_model_len, "messages")

    def tokens() -> int:
        return len(model.tokenizer.encode(text, add_special_tokens=False))

    return {"input_tokens": await service.threads.run(tokens) if is_long([text]) else tokens()}


COUNT = Operation(
    method="POST",
    path="/v1/messages/count_tokens",
    summary="Count the tokens of a message's prompt",
    body=PromptBody,
    answers=TokenCount,
    run=count,
    errors=ERRORS,
)
