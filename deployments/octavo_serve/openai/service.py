"""The API's operations: from a validated body to a response object, or to a stream of events.

HTTP routes and Python handle calls use the same methods, so both validate, route and answer alike. A stream's first
event comes with the first token: everything that can be refused is refused before it.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

from octavo.errors import BadRequest
from octavo.request import CompletionOutput, SamplingParams
from octavo.text.chat import render_chat
from octavo.text.detokenizer import TextOffsets, prompt_offsets
from octavo.text.output import choose_best
from octavo.text.template import QUICK_TEXT, NotQuick, fits
from octavo.text.tokenizer import Tokenizer
from octavo_serve.openai.bounds import BodyBounds
from octavo_serve.openai.conversion import (
    Limits,
    check_template_reads,
    check_token_ids,
    prompts_of,
    sampling_params,
    template_variables,
)
from octavo_serve.openai.generation import Generation
from octavo_serve.openai.model import ServedModel
from octavo_serve.openai.prompts import Asked, Prompt, check_tokenized, is_long, prepare
from octavo_serve.openai.registry import Registry
from octavo_serve.openai.responses import (
    Piece,
    TokenIdNames,
    chat_logprobs,
    completion_logprobs,
    fingerprint,
    joined_logprobs,
    prompt_logprobs,
    routing_headers,
    usage,
)
from octavo_serve.openai.schemas import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    Detokenized,
    DetokenizeRequest,
    PromptLogprobs,
    SamplingBody,
    TokenizeRequest,
    Tokens,
    Usage,
)
from octavo_serve.openai.threads import Threads
from octavo_serve.telemetry import RequestTimer, Telemetry

P = ParamSpec("P")
T = TypeVar("T")

FEW = 256
"""Messages, or choices, that take about a millisecond to unpack or to prepare."""
MANY = 1000
"""Log probabilities that take a few milliseconds to put into an answer."""


@dataclass(slots=True)
class _Job:
    """One validated request, ready to run."""

    id: str
    created: int
    model: ServedModel
    body: ChatRequest | CompletionRequest
    params: SamplingParams
    generation: Generation
    timer: RequestTimer
    headers: dict[str, str]  # filled with where the request was sent and why, when its first token comes
    fingerprint: str
    prompt_texts: list[str]  # for `echo`
    sent: int = 0  # tokens in the events of its stream so far

    @property
    def names(self) -> Tokenizer | TokenIdNames:
        """What log probabilities call tokens."""
        tokenizer = self.model.tokenizer
        return TokenIdNames(tokenizer) if self.body.return_tokens_as_token_ids else tokenizer

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.generation.requests)

    @property
    def usage(self) -> Usage:
        return self._usage(self.generation.completion_tokens)

    @property
    def usage_so_far(self) -> Usage | None:
        """What the `usage` of a stream's chunks before the last one holds: the tokens of the chunks up to it."""
        options = self.body.stream_options
        return self._usage(self.sent) if options is not None and options.continuous_usage_stats else None

    def _usage(self, completion_tokens: int) -> Usage:
        completion_tokens = 0 if self.body.asked_tokens == 0 else completion_tokens
        return usage(self.prompt_tokens, completion_tokens, self.generation.cached_tokens)

    @property
    def is_large(self) -> bool:
        """Its answer takes too long to be put together on the event loop."""
        params = self.params
        of_prompts = 0 if params.prompt_logprobs is None else self.prompt_tokens * (1 + params.prompt_logprobs)
        of_tokens = 0 if params.logprobs is None else self.generation.completion_tokens * (1 + params.logprobs)
        return of_prompts + of_tokens > MANY


class Service:
    """The API over the models one gateway serves."""

    def __init__(self, models: Registry, limits: Limits, telemetry: Telemetry) -> None:
        self.models = models
        self.limits = limits
        self.telemetry = telemetry
        self.threads = Threads()

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
        (outputs,) = await _run(job)
        return await self._made(job, _chat_answer, job, outputs)

    async def chat_stream(
        self, body: ChatRequest, session: str = "", headers: dict[str, str] | None = None
    ) -> AsyncGenerator[ChatChunk, None]:
        """The same answer event by event; the first event is made when the first token is there."""
        job = await self._chat_job(body, session, headers)
        started: set[int] = set()
        async with aclosing(_pieces(job)) as stream:
            async for pieces in stream:
                for piece in pieces:
                    if piece.choice not in started:
                        yield await self._made(job, _first_chat_chunk, job, piece.choice, not started)
                        started.add(piece.choice)
                    job.sent += len(piece.token_ids)
                    for choice in _chat_deltas(piece, job):
                        yield _chat_chunk(job, [choice])
        if body.wants_usage:
            yield {**_chat_chunk(job, []), "usage": job.usage}

    async def complete(
        self, body: CompletionRequest, session: str = "", headers: dict[str, str] | None = None
    ) -> Completion:
        """Continue one or many prompts.

        Raises:
            BadRequest, Overloaded, ModelNotReady, EngineDead.
        """
        job = await self._completion_job(body, session, headers)
        outputs = [output for of_prompt in await _run(job) for output in of_prompt]
        return await self._made(job, _completion_answer, job, outputs)

    async def complete_stream(
        self, body: CompletionRequest, session: str = "", headers: dict[str, str] | None = None
    ) -> AsyncGenerator[Completion, None]:
        """The same answer event by event; the first event is made when the first token is there."""
        job = await self._completion_job(body, session, headers)
        writers = _writers(job)
        async with aclosing(_pieces(job)) as stream:
            async for pieces in stream:
                for piece in pieces:
                    job.sent += len(piece.token_ids)
                    writer = writers[piece.choice]
                    if writer.owes_prompt:
                        choice = await self._made(job, writer.choice, piece)
                    elif _says_something(piece, body) or piece.finish_reason:
                        choice = writer.choice(piece)
                    else:
                        continue
                    yield _with_usage(job, _completion_chunk(job, [choice]))
        if body.wants_usage:
            yield {**_completion_chunk(job, []), "usage": job.usage}

    async def tokenize(self, body: TokenizeRequest) -> Tokens:
        """vLLM's /tokenize: a prompt's or a chat's token ids."""
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("send either prompt or messages", "prompt")
        model = await self.models.served(body.model)
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

    async def _made(self, job: _Job, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A part of a job's answer, made beside the event loop where that takes long."""
        return await self.threads.finish(make, *args, **kwargs) if job.is_large else make(*args, **kwargs)

    # ---- from body to job -------------------------------------------------------------------------------------

    async def _chat_job(self, body: ChatRequest, session: str, headers: dict[str, str] | None) -> _Job:
        params = sampling_params(body, self.limits)
        session = session or body.prompt_cache_key or body.user or ""
        model = await self.models.served(body.model, session)
        text = await self._render(model, body)
        if not text:
            raise BadRequest("the model's chat template makes no prompt of these messages", "messages")
        return await self._job("chatcmpl", model, body, params, [text], session, headers)

    async def _completion_job(self, body: CompletionRequest, session: str, headers: dict[str, str] | None) -> _Job:
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
    ) -> _Job:
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
        model.defaults.fill_in(params, body, info.max_model_len - max(lengths))
        return _Job(
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
        return await self.threads.run(work, quickly=False)


def _rendered(
    tokenizer: Tokenizer, body: ChatRequest | TokenizeRequest, variables: dict[str, Any], *, quickly: bool
) -> str:
    tools = body.tools if getattr(body, "tool_choice", None) != "none" else None
    return render_chat(
        tokenizer,
        [message.model_dump(exclude_unset=True) for message in body.messages or []],
        tools=tools or None,
        add_generation_prompt=(
            not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
        ),
        continue_final_message=bool(body.continue_final_message),
        chat_template_kwargs={**variables, **(body.chat_template_kwargs or {})},
        quickly=quickly,
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


# ---- from pieces to answers -------------------------------------------------------------------------------------


async def _pieces(job: _Job) -> AsyncGenerator[list[Piece], None]:
    """The job's pieces, at most one per choice at a time, counted by its timer."""
    begun = 0
    async with aclosing(job.generation.pieces()) as stream:
        async for pieces in stream:
            if len(job.generation.begun) > begun:
                for placement, cached in job.generation.begun[begun:]:
                    job.timer.placed(placement, cached)
                begun = len(job.generation.begun)
                job.headers |= routing_headers(job.generation.begun)
            joined = _joined(pieces)
            for piece in joined:
                job.timer.tokens(piece.choice, len(piece.token_ids))
                if piece.finish_reason is not None:
                    job.timer.finished(piece.finish_reason)
            yield joined
    job.timer.done()


async def _run(job: _Job) -> list[list[CompletionOutput]]:
    """Run to the end; for each prompt its `n` choices, the best of those generated."""
    async with aclosing(_pieces(job)) as stream:
        async for _ in stream:
            pass
    outputs = job.generation.outputs()
    if job.params.num_sequences > job.params.n:
        return [choose_best(sequences, job.params.n) for sequences in outputs]
    return outputs


def _whole(output: CompletionOutput, choice: int) -> Piece:
    return Piece(choice, output.text, output.token_ids, output.logprobs, output.finish_reason, output.stop_reason)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Pieces of the same choice put together, in order of first appearance."""
    by_choice: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_choice.setdefault(piece.choice, []).append(piece)
    return [some[0] if len(some) == 1 else _join(some) for some in by_choice.values()]


def _join(pieces: list[Piece]) -> Piece:
    last = pieces[-1]
    logprobs = [entry for piece in pieces for entry in piece.logprobs or ()]
    return Piece(
        last.choice,
        "".join(piece.text for piece in pieces),
        [token_id for piece in pieces for token_id in piece.token_ids],
        logprobs if last.logprobs is not None else None,
        last.finish_reason,
        last.stop_reason,
    )


def _chat_answer(job: _Job, outputs: list[CompletionOutput]) -> ChatCompletion:
    answer: ChatCompletion = {
        "id": job.id,
        "object": "chat.completion",
        "created": job.created,
        "model": job.model.name,
        "choices": [_chat_choice(_whole(output, output.index), job) for output in outputs],
        "usage": job.usage,
        "system_fingerprint": job.fingerprint,
        "service_tier": None,
        "prompt_logprobs": _asked_prompt_logprobs(job, 0),
    }
    if job.body.return_token_ids:
        answer["prompt_token_ids"] = job.generation.requests[0].prompt_token_ids
    return answer


def _first_chat_chunk(job: _Job, choice: int, of_stream: bool) -> ChatChunk:
    """A choice's role; the first of all says what is known of the prompt, too."""
    chunk = _chat_chunk(job, [_delta(choice, {"role": "assistant", "content": ""})])
    if of_stream and job.body.return_token_ids:
        chunk["prompt_token_ids"] = job.generation.requests[0].prompt_token_ids
    if of_stream and job.body.prompt_logprobs is not None:
        chunk["prompt_logprobs"] = _asked_prompt_logprobs(job, 0)
    return chunk


def _asked_prompt_logprobs(job: _Job, prompt: int) -> PromptLogprobs | None:
    if job.body.prompt_logprobs is None:
        return None
    return prompt_logprobs(job.generation.prompt_logprobs(prompt), job.model.tokenizer)


def _completion_answer(job: _Job, outputs: list[CompletionOutput]) -> Completion:
    choices = [
        writer.choice(_whole(output, i)) for i, (writer, output) in enumerate(zip(_writers(job), outputs, strict=True))
    ]
    return {**_completion_chunk(job, choices), "usage": job.usage}


def _chat_choice(piece: Piece, job: _Job) -> ChatChoice:
    choice: ChatChoice = {
        "index": piece.choice,
        "message": {"role": "assistant", "content": piece.text, "refusal": None},
        "logprobs": chat_logprobs(piece, job.names, job.params.logprobs or 0),
        "finish_reason": piece.finish_reason,
        "stop_reason": piece.stop_reason,
    }
    if job.body.return_token_ids:
        choice["token_ids"] = piece.token_ids
    return choice


def _chat_deltas(piece: Piece, job: _Job) -> list[ChunkChoice]:
    """A piece as deltas: its text, then, when it is the last, the finish reason by itself."""
    deltas = []
    if _says_something(piece, job.body):
        delta = _delta(piece.choice, {"content": piece.text})
        delta["logprobs"] = chat_logprobs(piece, job.names, job.params.logprobs or 0)
        if job.body.return_token_ids:
            delta["token_ids"] = piece.token_ids
        deltas.append(delta)
    if piece.finish_reason is not None:
        last = _delta(piece.choice, {})
        last["finish_reason"] = piece.finish_reason
        last["stop_reason"] = piece.stop_reason
        deltas.append(last)
    return deltas


def _says_something(piece: Piece, body: SamplingBody) -> bool:
    return bool(piece.text or piece.logprobs or (body.return_token_ids and piece.token_ids))


def _delta(choice: int, delta: Delta) -> ChunkChoice:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}


def _chat_chunk(job: _Job, choices: list[ChunkChoice]) -> ChatChunk:
    chunk: ChatChunk = {
        "id": job.id,
        "object": "chat.completion.chunk",
        "created": job.created,
        "model": job.model.name,
        "choices": choices,
        "system_fingerprint": job.fingerprint,
    }
    if job.body.wants_usage:
        chunk["usage"] = job.usage_so_far
    return chunk


def _completion_chunk(job: _Job, choices: list[CompletionChoice]) -> Completion:
    return {
        "id": job.id,
        "object": "text_completion",
        "created": job.created,
        "model": job.model.name,
        "choices": choices,
        "system_fingerprint": job.fingerprint,
    }


def _with_usage(job: _Job, chunk: Completion) -> Completion:
    return {**chunk, "usage": job.usage_so_far} if job.body.wants_usage else chunk


@dataclass(slots=True)
class _Writer:
    """Turns the pieces of one choice of a completion into its choice objects; knows how far its text has come."""

    job: _Job
    index: int
    prompt: int
    begun: bool = False  # what is known of the prompt has been written
    offsets: TextOffsets | None = None

    @property
    def owes_prompt(self) -> bool:
        """Its next piece must be written, for the prompt belongs to it."""
        return not self.begun and (bool(self.job.prompt_texts) or self.job.body.prompt_logprobs is not None)

    def choice(self, piece: Piece) -> CompletionChoice:
        text, parts, body = "", [], self.job.body
        first, self.begun = not self.begun, True
        if body.asked_tokens == 0:  # the one token generated is left out
            piece = Piece(piece.choice, "", [], None, piece.finish_reason and "length")
        if first and self.job.prompt_texts:
            text = self.job.prompt_texts[self.prompt]
            parts.append(self._prompt_logprobs())
        parts.append(self._logprobs(piece))
        known = [part for part in parts if part is not None]
        choice: CompletionChoice = {
            "index": self.index,
            "text": text + piece.text,
            "logprobs": joined_logprobs(known) if known else None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
            "prompt_logprobs": _asked_prompt_logprobs(self.job, self.prompt) if first else None,
        }
        if body.return_token_ids:
            choice["token_ids"] = piece.token_ids
            if first:
                choice["prompt_token_ids"] = self.job.generation.requests[self.prompt].prompt_token_ids
        return choice

    def _logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        if piece.logprobs is None:
            return None
        self.offsets = self.offsets or self._text_offsets()
        offsets = self.offsets.push(piece.token_ids)
        return completion_logprobs(piece.token_ids, list(piece.logprobs), self.job.names, offsets)

    def _text_offsets(self) -> TextOffsets:
        job, request = self.job, self.job.generation.requests[self.prompt]
        start = len(job.prompt_texts[self.prompt]) if job.prompt_texts else 0
        return TextOffsets(job.model.tokenizer, request.prompt_token_ids, job.params.skip_special_tokens, start)

    def _prompt_logprobs(self) -> CompletionLogprobs | None:
        if self.job.params.logprobs is None:
            return None
        entries = self.job.generation.prompt_logprobs(self.prompt)
        token_ids = self.job.generation.requests[self.prompt].prompt_token_ids
        offsets = prompt_offsets(self.job.model.tokenizer, token_ids, self.job.prompt_texts[self.prompt])
        return completion_logprobs(token_ids, entries, self.job.names, offsets)


def _writers(job: _Job) -> list[_Writer]:
    """One per choice of the response."""
    n = job.params.n
    return [_Writer(job, i, i // n) for i in range(n * len(job.generation.requests))]
