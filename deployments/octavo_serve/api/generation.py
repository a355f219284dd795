"""One API request in flight: its prompts at the shards, their updates merged into pieces of text.

Coalescing is adaptive: each prompt's stream is read as fast as it comes, and the consumer gets whatever has
accumulated since it was last ready. A quick consumer sees every token at once, a slow one sees fewer, larger pieces.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from octavo.errors import EngineDead, OctavoError
from octavo.request import CompletionOutput, Placement, Request, SequenceUpdate, TokenLogprobs
from octavo.text.output import SequenceText
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.model import ModelClient
from octavo_serve.api.turns import Turns
from octavo_serve.surfaces.openai.responses import Piece

STARTS = 32
"""Prompts sent on their way in one turn of the event loop."""


@dataclass(slots=True, eq=False)
class _Prompt:
    """One prompt: its request, its sequences, the task that reads its stream."""

    first_choice: int
    request: Request
    sequences: list[SequenceText]
    reader: asyncio.Task[None] | None = None
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    placement: Placement | None = None
    cached_tokens: int = 0
    begun: bool = False
    ended: int = 0

    @property
    def finished(self) -> bool:
        return self.ended == len(self.sequences)


class Generation:
    """Runs requests, all with the same parameters, and yields what comes.

    Choices are numbered through: those of the first prompt, then those of the second, and so on.

    Attributes:
        cached_tokens: prompt tokens that came from the prefix cache.
        begun: of the prompts that have their first token, in that order: where each was sent, and its cached tokens.
    """

    def __init__(self, client: ModelClient, tokenizer: Tokenizer, requests: list[Request]) -> None:
        self.client = client
        self.requests = requests
        self._prompts = [
            _Prompt(
                position * request.params.num_sequences,
                request,
                [
                    SequenceText(tokenizer, request.params, request.prompt_token_ids, index)
                    for index in range(request.params.num_sequences)
                ],
            )
            for position, request in enumerate(requests)
        ]
        self.begun: list[tuple[Placement, int]] = []
        self.cached_tokens = 0
        self._running = len(self._prompts)  # counted: looking at 1,024 prompts for each token is slower than the tokens
        self._arrived: list[tuple[_Prompt, list[SequenceUpdate]]] = []
        self._news = asyncio.Event()

    @property
    def completion_tokens(self) -> int:
        """Tokens of all sequences so far."""
        return sum(len(sequence.token_ids) for prompt in self._prompts for sequence in prompt.sequences)

    def prompt_logprobs(self, prompt: int) -> list[TokenLogprobs | None]:
        """Of one prompt, by its number; known when its first piece is there."""
        return self._prompts[prompt].prompt_logprobs

    def outputs(self) -> list[list[CompletionOutput]]:
        """All sequences of each prompt."""
        return [[sequence.output() for sequence in prompt.sequences] for prompt in self._prompts]

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What came since the consumer was last ready, until every sequence has ended; closing it aborts the rest.

        Raises:
            BadRequest, Overloaded, EngineDead: as the shards do.
        """
        try:
            for number, prompt in enumerate(self._prompts, 1):
                prompt.reader = self._start(prompt)
                if number % STARTS == 0:
                    await asyncio.sleep(0)
            while self._running:
                while not self._arrived:
                    self._raise_if_failed()
                    await self._news.wait()
                    self._news.clear()
                arrived, self._arrived = self._arrived, []
                turns = Turns()
                pieces = [piece for prompt, updates in arrived for piece in await self._apply(prompt, updates, turns)]
                if pieces:
                    yield pieces
        finally:
            await _stop([prompt.reader for prompt in self._prompts if prompt.reader])

    def _start(self, prompt: _Prompt) -> asyncio.Task[None]:
        # Ray Serve gives all handle calls of one context one id and then fulfils only one of those that wait at the
        # same time, so calls that run side by side each get a context of their own.
        context = contextvars.Context() if len(self._prompts) > 1 else None
        reader = asyncio.create_task(self._read(prompt), context=context)
        reader.add_done_callback(lambda _: self._news.set())
        return reader

    async def _read(self, prompt: _Prompt) -> None:
        async with aclosing(self.client.generate(prompt.request)) as stream:
            async for updates in stream:
                if prompt.placement is None:
                    prompt.placement = self.client.placement(prompt.request.request_id)
                self._arrived.append((prompt, updates))
                self._news.set()

    async def _apply(self, prompt: _Prompt, updates: list[SequenceUpdate], turns: Turns) -> list[Piece]:
        pieces = []
        if not prompt.begun:
            prompt.begun = True
            if prompt.placement is not None:
                self.begun.append((prompt.placement, updates[0].num_cached_tokens))
        for update in updates:
            if turns.over:
                await turns.pause()
            if (more := update.num_cached_tokens - prompt.cached_tokens) > 0:
                prompt.cached_tokens += more
                self.cached_tokens += more
            if update.prompt_logprobs is not None:
                prompt.prompt_logprobs = update.prompt_logprobs
            if update.finish_reason == "error":
                raise OctavoError(str(update.stop_reason))
            sequence = prompt.sequences[update.index]
            if sequence.finish_reason is not None:
                continue  # ended here by a stop string while the engine was a step ahead
            pieces.append(self._piece(prompt, sequence, update))
            if sequence.finish_reason is not None:
                prompt.ended += 1
                self._running -= prompt.finished
            if sequence.stopped and update.finish_reason is None:
                await self._end_early(prompt, update.index)
        return pieces

    def _piece(self, prompt: _Prompt, sequence: SequenceText, update: SequenceUpdate) -> Piece:
        before = len(sequence.token_ids)
        text = sequence.push(update)
        choice = prompt.first_choice + update.index
        logprobs = None if sequence.logprobs is None else sequence.logprobs[before:]
        return Piece(choice, text, sequence.token_ids[before:], logprobs, sequence.finish_reason, sequence.stop_reason)

    async def _end_early(self, prompt: _Prompt, index: int) -> None:
        """A stop string ended a sequence that the engine would go on with."""
        if not prompt.finished:
            await self.client.abort(prompt.request.request_id, index)
        elif prompt.reader:
            prompt.reader.cancel()

    def _raise_if_failed(self) -> None:
        for prompt in self._prompts:
            if prompt.finished or prompt.reader is None or not prompt.reader.done():
                continue
            if (error := prompt.reader.exception()) is not None:
                raise error
            raise EngineDead("the shard's stream ended before the request did")


async def _stop(readers: list[asyncio.Task[None]]) -> None:
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
