"""From what was generated for one request to its answer, or to the events of its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from octavo.request import CompletionOutput, SamplingParams
from octavo.text.detokenizer import TextOffsets, prompt_offsets
from octavo.text.output import choose_best
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.generation import Generation
from octavo_serve.api.model import ServedModel
from octavo_serve.api.turns import Turns
from octavo_serve.surfaces.openai.responses import (
    Piece,
    TokenIdNames,
    chat_logprobs,
    completion_logprobs,
    joined_logprobs,
    prompt_logprobs,
    routing_headers,
    usage,
)
from octavo_serve.surfaces.openai.schemas import (
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
    PromptLogprobs,
    SamplingBody,
    Usage,
)
from octavo_serve.telemetry import RequestTimer

MANY = 1000
"""Log probabilities that take a few milliseconds to put into an answer."""


@dataclass(slots=True)
class Job:
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

    def is_large(self, prompt_tokens: int, tokens: int) -> bool:
        """Whether what says so much takes too long to be put together on the event loop."""
        params = self.params
        of_prompts = 0 if params.prompt_logprobs is None else prompt_tokens * (1 + params.prompt_logprobs)
        of_tokens = 0 if params.logprobs is None else tokens * (1 + params.logprobs)
        return of_prompts + of_tokens > MANY


async def pieces_of(job: Job) -> AsyncGenerator[list[Piece], None]:
    """The job's pieces, at most one per choice at a time, counted by its timer."""
    begun = 0
    async with aclosing(job.generation.pieces()) as stream:
        async for pieces in stream:
            if len(job.generation.begun) > begun:
                for placement, cached in job.generation.begun[begun:]:
                    job.timer.placed(placement, cached)
                begun = len(job.generation.begun)
                job.headers |= routing_headers(job.generation.begun)
            joined = pieces if len(pieces) == 1 else await _joined(pieces)
            turns = None if len(joined) == 1 else Turns()
            for piece in joined:
                if turns is not None and turns.over:  # each of its tokens is counted: a long piece takes long
                    await turns.pause()
                job.timer.tokens(piece.choice, len(piece.token_ids))
                if piece.finish_reason is not None:
                    job.timer.finished(piece.finish_reason)
            yield joined
    job.timer.done()


async def run(job: Job) -> None:
    """Run to the end."""
    async with aclosing(pieces_of(job)) as stream:
        async for _ in stream:
            pass


def _outputs(job: Job) -> list[list[CompletionOutput]]:
    """For each prompt its `n` choices, the best of those generated."""
    outputs = job.generation.outputs()
    if job.params.num_sequences > job.params.n:
        return [choose_best(sequences, job.params.n) for sequences in outputs]
    return outputs


def _whole(output: CompletionOutput, choice: int) -> Piece:
    return Piece(choice, output.text, output.token_ids, output.logprobs, output.finish_reason, output.stop_reason)


async def _joined(pieces: list[Piece]) -> list[Piece]:
    """Pieces of the same choice put together, in order of first appearance."""
    by_choice: dict[int, list[Piece]] = {}
    turns = Turns()
    for piece in pieces:
        by_choice.setdefault(piece.choice, []).append(piece)
        if turns.over:
            await turns.pause()
    joined = []
    for some in by_choice.values():
        joined.append(some[0] if len(some) == 1 else _join(some))
        if turns.over:
            await turns.pause()
    return joined


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


def chat_answer(job: Job) -> ChatCompletion:
    """The answer of a chat that is not streamed."""
    (outputs,) = _outputs(job)
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


def first_chat_chunk(job: Job, choice: int, of_stream: bool) -> ChatChunk:
    """A choice's role; the first of all says what is known of the prompt, too."""
    chunk = chat_chunk(job, [_delta(choice, {"role": "assistant", "content": ""})])
    if of_stream and job.body.return_token_ids:
        chunk["prompt_token_ids"] = job.generation.requests[0].prompt_token_ids
    if of_stream and job.body.prompt_logprobs is not None:
        chunk["prompt_logprobs"] = _asked_prompt_logprobs(job, 0)
    return chunk


def _asked_prompt_logprobs(job: Job, prompt: int) -> PromptLogprobs | None:
    if job.body.prompt_logprobs is None:
        return None
    return prompt_logprobs(job.generation.prompt_logprobs(prompt), job.model.tokenizer)


def completion_answer(job: Job) -> Completion:
    """The answer of a completion that is not streamed."""
    outputs = [output for of_prompt in _outputs(job) for output in of_prompt]
    choices = [
        writer.choice(_whole(output, i))
        for i, (writer, output) in enumerate(zip(writers_of(job), outputs, strict=True))
    ]
    return {**completion_chunk(job, choices), "usage": job.usage}


def _chat_choice(piece: Piece, job: Job) -> ChatChoice:
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


def chat_deltas(piece: Piece, job: Job) -> list[ChunkChoice]:
    """A piece as deltas: its text, then, when it is the last, the finish reason by itself."""
    deltas = []
    if says_something(piece, job.body):
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


def says_something(piece: Piece, body: SamplingBody) -> bool:
    """Whether a client would miss a piece of a stream."""
    return bool(piece.text or piece.logprobs or (body.return_token_ids and piece.token_ids))


def _delta(choice: int, delta: Delta) -> ChunkChoice:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}


def chat_chunk(job: Job, choices: list[ChunkChoice]) -> ChatChunk:
    """An event of a chat's stream."""
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


def completion_chunk(job: Job, choices: list[CompletionChoice]) -> Completion:
    """A completion's answer, or an event of its stream, without usage."""
    return {
        "id": job.id,
        "object": "text_completion",
        "created": job.created,
        "model": job.model.name,
        "choices": choices,
        "system_fingerprint": job.fingerprint,
    }


def with_usage(job: Job, chunk: Completion) -> Completion:
    """An event with the usage so far, where the stream's end has one."""
    return {**chunk, "usage": job.usage_so_far} if job.body.wants_usage else chunk


@dataclass(slots=True)
class Writer:
    """Turns the pieces of one choice of a completion into its choice objects; knows how far its text has come."""

    job: Job
    index: int
    prompt: int
    begun: bool = False  # what is known of the prompt has been written
    offsets: TextOffsets | None = None

    @property
    def owes_prompt(self) -> bool:
        """Its next piece must be written, for the prompt belongs to it."""
        return not self.begun and (bool(self.job.prompt_texts) or self.job.body.prompt_logprobs is not None)

    def is_long(self, piece: Piece) -> bool:
        """Whether `choice` belongs into a thread."""
        if self.owes_prompt:
            prompt = self.job.generation.requests[self.prompt].prompt_token_ids
            return self.job.is_large(len(prompt), len(piece.token_ids))
        return piece.logprobs is not None and self.job.is_large(0, len(piece.token_ids))

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


def writers_of(job: Job) -> list[Writer]:
    """One per choice of the response."""
    n = job.params.n
    return [Writer(job, i, i // n) for i in range(n * len(job.generation.requests))]
