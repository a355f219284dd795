"""The API's operations: from a validated body to a response object, or to a stream of events.

HTTP routes and Python handle calls use the same methods, so both validate, route and answer alike. A stream's first
event comes with the first token: everything that can be refused is refused before it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from octavo.errors import BadRequest
from octavo.request import CompletionOutput, Request, SamplingParams
from octavo.text.chat import render_chat
from octavo.text.output import choose_best
from octavo.text.tokenizer import Tokenizer
from octavo_serve.openai.bounds import BodyBounds
from octavo_serve.openai.conversion import (
    Limits,
    check_length,
    check_template_reads,
    check_token_ids,
    prompts_of,
    sampling_params,
    template_variables,
)
from octavo_serve.openai.generation import Generation
from octavo_serve.openai.model import ModelInfo, ServedModel, block_hashes
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
    SamplingBody,
    TokenizeRequest,
    Tokens,
    Usage,
)
from octavo_serve.telemetry import RequestTimer, Telemetry

LONG_TEXT = 8192
"""Characters from which text is tokenised in a thread: about 2 ms, the time of a few events on the loop."""


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
    prompt_texts: list[str] = field(default_factory=list)  # filled for `echo`

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
        generation = self.generation
        completion_tokens = 0 if self.body.asked_tokens == 0 else generation.completion_tokens
        return usage(self.prompt_tokens, completion_tokens, generation.cached_tokens)

    @property
    def usage_so_far(self) -> Usage | None:
        """What the `usage` of a stream's chunks before the last one holds."""
        options = self.body.stream_options
        return self.usage if options is not None and options.continuous_usage_stats else None


class Service:
    """The API over the models one gateway serves."""

    def __init__(self, models: Registry, limits: Limits, telemetry: Telemetry) -> None:
        self.models = models
        self.limits = limits
        self.telemetry = telemetry

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
        choices = [_chat_choice(_whole(output, output.index), job) for output in outputs]
        answer: ChatCompletion = {
            "id": job.id,
            "object": "chat.completion",
            "created": job.created,
            "model": job.model.name,
            "choices": choices,
            "usage": job.usage,
            "system_fingerprint": job.fingerprint,
            "service_tier": None,
            "prompt_logprobs": None,
        }
        if body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(job.generation.prompt_logprobs(0), job.model.tokenizer)
        if body.return_token_ids:
            answer["prompt_token_ids"] = job.generation.requests[0].prompt_token_ids
        return answer

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
                        first = _chat_chunk(job, [_delta(piece.choice, {"role": "assistant", "content": ""})])
                        if body.return_token_ids and not started:
                            first["prompt_token_ids"] = job.generation.requests[0].prompt_token_ids
                        started.add(piece.choice)
                        yield first
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
        choices = [
            writer.choice(_whole(output, i))
            for i, (writer, output) in enumerate(zip(_writers(job), outputs, strict=True))
        ]
        return {**_completion_chunk(job, choices), "usage": job.usage}

    async def complete_stream(
        self, body: CompletionRequest, session: str = "", headers: dict[str, str] | None = None
    ) -> AsyncGenerator[Completion, None]:
        """The same answer event by event; the first event is made when the first token is there."""
        job = await self._completion_job(body, session, headers)
        writers = _writers(job)
        async with aclosing(_pieces(job)) as stream:
            async for pieces in stream:
                for piece in pieces:
                    if _says_something(piece, body) or piece.finish_reason or writers[piece.choice].owes_prompt:
                        yield _with_usage(job, _completion_chunk(job, [writers[piece.choice].choice(piece)]))
        if body.wants_usage:
            yield {**_completion_chunk(job, []), "usage": job.usage}

    async def tokenize(self, body: TokenizeRequest) -> Tokens:
        """vLLM's /tokenize: a prompt's or a chat's token ids."""
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("send either prompt or messages", "prompt")
        model = await self.models.served(body.model)
        if body.messages is not None:
            text = self._render(model, body)
            token_ids = await _encode(model, text, add_special_tokens=bool(body.add_special_tokens))
        else:
            token_ids = await _encode(model, body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
        info = await model.client.describe()
        texts = [model.tokenizer.token_text(token_id) for token_id in token_ids] if body.return_token_strs else None
        return {"count": len(token_ids), "max_model_len": info.max_model_len, "tokens": token_ids, "token_strs": texts}

    async def detokenize(self, body: DetokenizeRequest) -> Detokenized:
        """vLLM's /detokenize."""
        model = await self.models.served(body.model)
        check_token_ids(body.tokens, (await model.client.describe()).vocab_size, "tokens")
        return {"prompt": model.tokenizer.decode(body.tokens, skip_special_tokens=False)}

    # ---- from body to job -------------------------------------------------------------------------------------

    async def _chat_job(self, body: ChatRequest, session: str, headers: dict[str, str] | None) -> _Job:
        params = sampling_params(body, self.limits)
        session = session or body.prompt_cache_key or body.user or ""
        model = await self.models.served(body.model, session)
        text = self._render(model, body)
        token_ids = await _encode(model, text, add_special_tokens=bool(body.add_special_tokens))
        return await self._job("chatcmpl", model, body, params, [token_ids], "messages", session, headers)

    async def _completion_job(self, body: CompletionRequest, session: str, headers: dict[str, str] | None) -> _Job:
        params = sampling_params(body, self.limits)
        prompts = prompts_of(body, self.limits)
        session = session or body.prompt_cache_key or body.user or ""
        model = await self.models.served(body.model, session)
        add = body.add_special_tokens is not False
        token_ids = [
            (await _encode(model, prompt, add_special_tokens=add) if prompt else _new_text(model.tokenizer))
            if isinstance(prompt, str)
            else prompt
            for prompt in prompts
        ]
        job = await self._job("cmpl", model, body, params, token_ids, "prompt", session, headers)
        if body.echo:
            job.prompt_texts = [
                prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt, skip_special_tokens=False)
                for prompt in prompts
            ]
        return job

    async def _job(
        self,
        kind: str,
        model: ServedModel,
        body: ChatRequest | CompletionRequest,
        params: SamplingParams,
        prompts: list[list[int]],
        param: str,
        session: str,
        headers: dict[str, str] | None,
    ) -> _Job:
        info = await model.client.describe()
        for token_ids in prompts:
            check_length(len(token_ids), body.asked_tokens, info.max_model_len, param)
            check_token_ids(token_ids, info.vocab_size, param)
        model.defaults.fill_in(params, body, info.max_model_len - max(map(len, prompts)))
        unique = secrets.token_hex(12)  # a client's own id may be in use by another request
        job_id = f"{kind}-{body.request_id or unique}"
        requests = [
            _request(f"{kind}-{unique}-{position}", token_ids, params, body, info, session)
            for position, token_ids in enumerate(prompts)
        ]
        timer = self.telemetry.request(model.name, sum(len(token_ids) for token_ids in prompts))
        generation = Generation(model.client, model.tokenizer, requests)
        return _Job(
            job_id,
            int(time.time()),
            model,
            body,
            params,
            generation,
            timer,
            {} if headers is None else headers,
            fingerprint(info.hash_name),
        )

    def _render(self, model: ServedModel, body: ChatRequest | TokenizeRequest) -> str:
        tools = body.tools if getattr(body, "tool_choice", None) != "none" else None
        variables = template_variables(body) if isinstance(body, ChatRequest) else {}
        if variables:
            check_template_reads(variables, "".join(model.tokenizer.chat_templates.values()))
        return render_chat(
            model.tokenizer,
            [message.model_dump(exclude_unset=True) for message in body.messages or []],
            tools=tools or None,
            add_generation_prompt=(
                not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
            ),
            continue_final_message=bool(body.continue_final_message),
            chat_template_kwargs={**variables, **(body.chat_template_kwargs or {})},
        )


def _new_text(tokenizer: Tokenizer) -> list[int]:
    """What an empty prompt stands for: the token that begins a text, or else one that ends the text before."""
    begin = tokenizer.bos_token_id
    return [min(tokenizer.eos_token_ids) if begin is None else begin]


def _request(
    request_id: str, token_ids: list[int], params: SamplingParams, body: SamplingBody, info: ModelInfo, session: str
) -> Request:
    request = Request(
        request_id=request_id,
        prompt_token_ids=token_ids,
        params=params,
        priority=body.priority or 0,
        session=session,
        cache_salt=body.cache_salt or "",
    )
    request.block_hashes = block_hashes(request, info)
    return request


async def _encode(model: ServedModel, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) < LONG_TEXT:
        return model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(model.tokenizer.encode, text, add_special_tokens=add_special_tokens)


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
    owes_prompt: bool  # the echoed prompt has not been written yet
    begun: bool = False
    offset: int = 0

    def choice(self, piece: Piece) -> CompletionChoice:
        assert isinstance(self.job.body, CompletionRequest)
        text, parts, body = "", [], self.job.body
        if body.max_tokens == 0:  # the one token generated is left out
            piece = Piece(piece.choice, "", [], None, piece.finish_reason and "length")
        if self.owes_prompt:
            self.owes_prompt = False
            text = self.job.prompt_texts[self.prompt]
            parts.append(self._prompt_logprobs())
        text += piece.text
        parts.append(self._logprobs(piece))
        known = [part for part in parts if part is not None]
        choice: CompletionChoice = {
            "index": self.index,
            "text": text,
            "logprobs": joined_logprobs(known) if known else None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
            "prompt_logprobs": None,
        }
        if body.return_token_ids:
            choice["token_ids"] = piece.token_ids
            if not self.begun:
                choice["prompt_token_ids"] = self.job.generation.requests[self.prompt].prompt_token_ids
        self.begun = True
        if body.prompt_logprobs is not None:
            entries = self.job.generation.prompt_logprobs(self.prompt)
            choice["prompt_logprobs"] = prompt_logprobs(entries, self.job.model.tokenizer)
        return choice

    def _logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        if piece.logprobs is None:
            return None
        found = completion_logprobs(piece.token_ids, list(piece.logprobs), self.job.names, self.offset)
        self.offset += sum(len(token) for token in found["tokens"])
        return found

    def _prompt_logprobs(self) -> CompletionLogprobs | None:
        if self.job.params.logprobs is None:
            return None
        entries = self.job.generation.prompt_logprobs(self.prompt)
        token_ids = self.job.generation.requests[self.prompt].prompt_token_ids
        found = completion_logprobs(token_ids, entries, self.job.names, 0)
        self.offset += sum(len(token) for token in found["tokens"])
        return found


def _writers(job: _Job) -> list[_Writer]:
    """One per choice of the response."""
    n = job.params.n
    return [_Writer(job, i, i // n, bool(job.prompt_texts)) for i in range(n * len(job.generation.requests))]
