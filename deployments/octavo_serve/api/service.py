"""The API's operations: from a validated body to a response object, or to a stream of events.

HTTP routes and Python handle calls use the same methods, so both validate, route and answer alike. A stream's first
event comes with the first token: everything that can be refused is refused before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, ParamSpec, TypeVar

from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo.text.chat import check_chat, render_chat
from octavo.text.template import QUICK_TEXT, NotQuick, fits
from octavo.text.template_process import PROCESSES
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.bounds import BodyBounds
from octavo_serve.api.generation import Generation
from octavo_serve.api.model import ServedModel
from octavo_serve.api.prompts import Asked, Prompt, check_tokenized, is_long, prepare
from octavo_serve.api.registry import Registry
from octavo_serve.api.threads import Threads
from octavo_serve.api.turns import PIECES
from octavo_serve.surfaces.openai.answers import (
    Job,
    chat_answer,
    chat_chunk,
    chat_deltas,
    completion_answer,
    completion_chunk,
    first_chat_chunk,
    pieces_of,
    run,
    says_something,
    with_usage,
    writers_of,
)
from octavo_serve.surfaces.openai.conversion import (
    Limits,
    check_prompt_logprobs,
    check_template_reads,
    check_token_ids,
    prompts_of,
    sampling_params,
    template_variables,
)
from octavo_serve.surfaces.openai.responses import fingerprint
from octavo_serve.surfaces.openai.schemas import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    TokenizeRequest,
    Tokens,
)
from octavo_serve.telemetry import Telemetry

P = ParamSpec("P")
T = TypeVar("T")

MAX_PARSED = 2
"""Large bodies that are parsed at a time, so that many of them leave the other cores alone."""
MAX_TEMPLATES = 64
"""Templates that may be rendered, or wait, beside the event loop: a minute when none of them ends."""
FEW = 256
"""Messages, or choices, that take about a millisecond to unpack or to prepare."""


class Service:
    """The API over the models one gateway serves."""

    def __init__(self, models: Registry, limits: Limits, telemetry: Telemetry) -> None:
        self.models = models
        self.limits = limits
        self.telemetry = telemetry
        self.threads = Threads()
        self.body_threads = Threads(MAX_PARSED)
        self.template_threads = Threads(PROCESSES, MAX_TEMPLATES)  # one that does not end holds up no texts

    @property
    def bounds(self) -> BodyBounds:
        """What a body may hold now."""
        return BodyBounds(self.models.longest_context)

    # ---- operations -------------------------------------------------------------------------------------------

    async def chat(self, body: ChatRequest, session: str = "", headers: dict[str, str] | None = None) -> ChatCompletion:
        """Answer a chat.

        Args:
            session: requests of one session stay together; the body's `user` when it is "".
            headers: filled with the response's headers about routing when the first token is there.

        Raises:
            BadRequest, Overloaded, ModelNotReady, EngineDead.
        """
        job = await self._chat_job(body, session, headers)
        await run(job)
        return await self._made(_is_large(job), chat_answer, job)

    async def chat_stream(
        self, body: ChatRequest, session: str = "", headers: dict[str, str] | None = None
    ) -> AsyncGenerator[ChatChunk, None]:
        """The same answer event by event; the first event is made when the first token is there."""
        job = await self._chat_job(body, session, headers)
        started: set[int] = set()
        async with aclosing(pieces_of(job)) as stream:
            async for pieces in stream:
                for number, piece in enumerate(pieces, 1):
                    if number % PIECES == 0:
                        await asyncio.sleep(0)
                    if piece.choice not in started:
                        is_large = not started and job.is_large(job.prompt_tokens, 0)
                        yield await self._made(is_large, first_chat_chunk, job, piece.choice, not started)
                        started.add(piece.choice)
                    job.sent += len(piece.token_ids)
                    if piece.logprobs is not None and job.is_large(0, len(piece.token_ids)):
                        deltas = await self.threads.finish(chat_deltas, piece, job)
                    else:
                        deltas = chat_deltas(piece, job)
                    for choice in deltas:
                        yield chat_chunk(job, [choice])
        if body.wants_usage:
            yield {**chat_chunk(job, []), "usage": job.usage}

    async def complete(
        self, body: CompletionRequest, session: str = "", headers: dict[str, str] | None = None
    ) -> Completion:
        """Continue one or many prompts.

        Raises:
            BadRequest, Overloaded, ModelNotReady, EngineDead.
        """
        job = await self._completion_job(body, session, headers)
        await run(job)
        return await self._made(_is_large(job), completion_answer, job)

    async def complete_stream(
        self, body: CompletionRequest, session: str = "", headers: dict[str, str] | None = None
    ) -> AsyncGenerator[Completion, None]:
        """The same answer event by event; the first event is made when the first token is there."""
        job = await self._completion_job(body, session, headers)
        writers = writers_of(job)
        async with aclosing(pieces_of(job)) as stream:
            async for pieces in stream:
                for number, piece in enumerate(pieces, 1):
                    if number % PIECES == 0:
                        await asyncio.sleep(0)
                    job.sent += len(piece.token_ids)
                    writer = writers[piece.choice]
                    if writer.is_long(piece):
                        choice = await self.threads.finish(writer.choice, piece)
                    elif writer.owes_prompt or says_something(piece, body) or piece.finish_reason:
                        choice = writer.choice(piece)
                    else:
                        continue
                    yield with_usage(job, completion_chunk(job, [choice]))
        if body.wants_usage:
            yield {**completion_chunk(job, []), "usage": job.usage}

    async def tokenize(self, body: TokenizeRequest) -> Tokens:
        """vLLM's /tokenize: a prompt's or a chat's token ids."""
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("send either prompt or messages", "prompt")
        model = await self.models.served(body.model, before_waiting=partial(_check_chat, body))
        info = await model.client.describe()
        if body.messages is not None:
            text, special = await self._render(model, body), bool(body.add_special_tokens)
        else:
            text, special = body.prompt or "", body.add_special_tokens is not False
        check_tokenized(text, info.max_model_len, "prompt" if body.messages is None else "messages")
        work = partial(_tokens, model.tokenizer, text, special, bool(body.return_token_strs), info.max_model_len)
        return await self.threads.run(work) if is_long([text]) else work()

    async def detokenize(self, body: DetokenizeRequest) -> Detokenized:
        """vLLM's /detokenize."""
        model = await self.models.served(body.model)
        vocab_size = (await model.client.describe()).vocab_size
        work = partial(_detokenized, model.tokenizer, body.tokens, vocab_size)
        return await self.threads.run(work) if is_long([body.tokens]) else work()

    async def _made(self, is_large: bool, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A part of a job's answer, made beside the event loop where that takes long."""
        return await self.threads.finish(make, *args, **kwargs) if is_large else make(*args, **kwargs)

    # ---- from body to job -------------------------------------------------------------------------------------

    async def _chat_job(self, body: ChatRequest, session: str, headers: dict[str, str] | None) -> Job:
        params = sampling_params(body, self.limits)
        session = session or body.prompt_cache_key or body.user or ""
        model = await self.models.served(body.model, session, partial(_check_chat, body))
        text = await self._render(model, body)
        if not text:
            raise BadRequest("the model's chat template makes no prompt of these messages", "messages")
        return await self._job("chatcmpl", model, body, params, [text], session, headers)

    async def _completion_job(self, body: CompletionRequest, session: str, headers: dict[str, str] | None) -> Job:
        params = sampling_params(body, self.limits)
        prompts = prompts_of(body, self.limits)
        session = session or body.prompt_cache_key or body.user or ""
        model = await self.models.served(body.model, session)
        return await self._job("cmpl", model, body, params, prompts, session, headers)

    async def _job(
        self,
        kind: str,
        model: ServedModel,
        body: ChatRequest | CompletionRequest,
        params: SamplingParams,
        prompts: list[Prompt],
        session: str,
        headers: dict[str, str] | None,
    ) -> Job:
        info = await model.client.describe()
        unique = secrets.token_hex(12)  # a client's own id may be in use by another request
        chat = isinstance(body, ChatRequest)
        asked = Asked(
            request_id=f"{kind}-{unique}",
            param="messages" if chat else "prompt",
            params=params,
            max_tokens=body.asked_tokens,
            add_special_tokens=bool(body.add_special_tokens) if chat else body.add_special_tokens is not False,
            priority=body.priority or 0,
            session=session,
            cache_salt=body.cache_salt or "",
            echo=isinstance(body, CompletionRequest) and bool(body.echo),
        )
        work = partial(prepare, model.tokenizer, info, prompts, asked)
        requests, texts = await self.threads.run(work) if is_long(prompts) else work()
        start = partial(Generation, model.client, model.tokenizer, requests)
        generation = await self.threads.run(start) if len(requests) * params.num_sequences > FEW else start()
        lengths = [len(request.prompt_token_ids) for request in requests]
        check_prompt_logprobs(sum(lengths), body)
        model.defaults.fill_in(params, body, info.max_model_len - max(lengths))
        return Job(
            id=f"{kind}-{body.request_id or unique}",
            created=int(time.time()),
            model=model,
            body=body,
            params=params,
            generation=generation,
            timer=self.telemetry.request(model.name, sum(lengths)),
            headers={} if headers is None else headers,
            fingerprint=fingerprint(info.hash_name),
            prompt_texts=texts,
        )

    async def _render(self, model: ServedModel, body: ChatRequest | TokenizeRequest) -> str:
        variables = template_variables(body) if isinstance(body, ChatRequest) else {}
        if variables:
            check_template_reads(variables, "".join(model.tokenizer.chat_templates.values()))
        work = partial(_rendered, model.tokenizer, body, variables)
        if len(body.messages or ()) <= FEW and fits(
            [(m.content, m.model_extra) for m in body.messages or ()], QUICK_TEXT
        ):
            with contextlib.suppress(NotQuick):
                return work(quickly=True)
        return await self.template_threads.run(work, quickly=False)


def _is_large(job: Job) -> bool:
    """Whether an answer takes too long to be put together on the event loop."""
    choices = len(job.generation.requests) * job.params.num_sequences
    return choices > FEW or job.is_large(job.prompt_tokens, job.generation.completion_tokens)


def _rendered(
    tokenizer: Tokenizer, body: ChatRequest | TokenizeRequest, variables: dict[str, Any], *, quickly: bool
) -> str:
    tools = body.tools if getattr(body, "tool_choice", None) != "none" else None
    messages, ending = _chat_of(body)
    kwargs = {**variables, **(body.chat_template_kwargs or {})}
    return render_chat(tokenizer, messages, tools=tools or None, chat_template_kwargs=kwargs, quickly=quickly, **ending)


def _chat_of(body: ChatRequest | TokenizeRequest) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """A body's messages, and how the prompt made of them ends, as `render_chat` takes both."""
    answer, go_on = body.add_generation_prompt, bool(body.continue_final_message)
    ending = {"add_generation_prompt": not go_on if answer is None else answer, "continue_final_message": go_on}
    return [message.model_dump(exclude_unset=True) for message in body.messages or []], ending


def _check_chat(body: ChatRequest | TokenizeRequest) -> None:
    """What can be known to be wrong with a chat while its model loads; a long one is looked at when it is rendered."""
    if body.messages is not None and len(body.messages) <= FEW:
        messages, ending = _chat_of(body)
        check_chat(messages, chat_template_kwargs=body.chat_template_kwargs, **ending)


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
