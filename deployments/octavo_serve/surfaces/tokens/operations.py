"""vLLM's /tokenize and /detokenize."""

from __future__ import annotations

from functools import partial

from octavo.errors import BadRequest
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.chats import Chat, as_function_tool, as_functions, render
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.prompts import check_token_ids, check_tokenized, is_long
from octavo_serve.api.service import Service
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.tokens.schemas import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens


async def tokenize(service: Service, call: Call) -> Tokens:
    """A prompt's or a chat's token ids.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: TokenizeRequest = call.body
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("send either prompt or messages", "prompt")
    chat = _chat(body)
    model = await service.models.served(body.model, before_waiting=chat.check if chat else None)
    info = await model.client.describe()
    if chat is not None:
        text = await render(chat, model.tokenizer, service.template_threads, model.defaults.response_template)
        special = bool(body.add_special_tokens)
    else:
        text, special = body.prompt or "", body.add_special_tokens is not False
    check_tokenized(text, info.max_model_len, "prompt" if chat is None else "messages")
    work = partial(_tokens, model.tokenizer, text, special, bool(body.return_token_strs), info.max_model_len)
    return await service.threads.run(work) if is_long([text]) else work()


async def detokenize(service: Service, call: Call) -> Detokenized:
    """The text of token ids.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: DetokenizeRequest = call.body
    model = await service.models.served(body.model)
    vocab_size = (await model.client.describe()).vocab_size
    work = partial(_detokenized, model.tokenizer, body.tokens, vocab_size)
    return await service.threads.run(work) if is_long([body.tokens]) else work()


def _chat(body: TokenizeRequest) -> Chat | None:
    if body.messages is None:
        return None
    return Chat(
        messages=[as_functions(message) for message in body.messages],
        tools=[as_function_tool(tool) for tool in body.tools or ()],
        variables=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
    )


def _tokens(tokenizer: Tokenizer, text: str, special: bool, texts: bool, max_model_len: int) -> Tokens:
    token_ids = tokenizer.encode(text, add_special_tokens=special)
    return {
        "count": len(token_ids),
        "max_model_len": max_model_len,
        "tokens": token_ids,
        "token_strs": [tokenizer.token_text(token_id) for token_id in token_ids] if texts else None,
    }


def _detokenized(tokenizer: Tokenizer, token_ids: list[int], vocab_size: int) -> Detokenized:
    check_token_ids(token_ids, vocab_size, "tokens")
    return {"prompt": tokenizer.decode(token_ids, skip_special_tokens=False)}


TOKENIZE = Operation(
    method="POST",
    path="/tokenize",
    summary="Token ids of a prompt or a chat",
    body=TokenizeRequest,
    answers=Tokens,
    run=tokenize,
    errors=ERRORS,
)
DETOKENIZE = Operation(
    method="POST",
    path="/detokenize",
    summary="The text of token ids",
    body=DetokenizeRequest,
    answers=Detokenized,
    run=detokenize,
    errors=ERRORS,
)
