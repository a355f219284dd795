"""Runs a job: from its requests' updates to a stream of pieces.

Coalescing is adaptive. Updates wait in the client's stream, or in `Arrivals` where there are several prompts, and the
consumer gets whatever has come since it was last ready: a quick one sees every token at once, a slow one sees fewer,
larger pieces.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from octavo.errors import BadRequest, DeadlineMissed, EngineDead, OctavoError
from octavo.request import FinishReason, Request, SequenceUpdate
from octavo.text.output import SequenceText
from octavo_serve.api import genai
from octavo_serve.api.arrivals import Arrivals
from octavo_serve.api.failures import failure_of
from octavo_serve.api.jobs import Job
from octavo_serve.api.pieces import Begun, Element, Ended, Piece, Stage
from octavo_serve.api.turns import Turns
from octavo_serve.api.usage import Usage

logger = logging.getLogger("ray.serve")

FEW = 8
"""Updates that are taken in without a look at the clock, which costs a tenth of one."""
_FAILED: dict[FinishReason, type[OctavoError]] = {
    "error": OctavoError,
    "refused": BadRequest,
    "late": DeadlineMissed,
}


async def run(job: Job) -> AsyncGenerator[list[Element], None]:
    """Run a job's requests; yields what came since the consumer was last ready (see `pieces`) until all have ended.

    Closing the generator, or cancelling the task that reads it, aborts what still runs.

    Raises:
        BadRequest, Overloaded, EngineDead: as the shards do; also where the tenant's quotas are used up.
        OctavoError: a sequence ended in an error of the engine.
    """
    client, requests = job.model.client, job.requests
    elements: list[Element] = []
    with job.telemetry.ledger.entry(job.tenant, job.model, job.prompt_tokens, job.answer_tokens) as used:
        arrivals = Arrivals(client, requests) if len(requests) > 1 else None
        updates_of = client.generate(requests[0]) if arrivals is None else arrivals
        running = _Running(job, arrivals, used)
        try:
            async for updates in updates_of:
                elements = await running.taken(updates)
                if not running.prompts_left:
                    break
                if elements:
                    yield elements
            else:
                raise EngineDead("the shard's stream ended before the request did")
        except (GeneratorExit, asyncio.CancelledError):
            running.timer.finished("abort")
            raise
        except OctavoError as error:
            if (status := failure_of(error).status) >= 500:
                logger.warning("%s: %d: %s", job.id, status, error)
            raise
        finally:
            await updates_of.aclose()
            running.stopped()
    running.timer.done()
    yield [*elements, Ended()]


@dataclass(slots=True, eq=False)
class _Prompt:
    """One prompt: its request, and its sequences once it has begun."""

    number: int
    first_choice: int
    request: Request
    cached_tokens: int = 0
    sequences: list[SequenceText] = field(default_factory=list)
    sequences_left: int = 0
    forced: int = 0


@dataclass(slots=True)
class _Growing:
    """A choice's next piece, while updates of it are taken in."""

    sequence: SequenceText
    first_token: int
    forced: bool
    texts: list[str] = field(default_factory=list)


class _Running:
    """A job's sequences as their updates come in.

    Attributes:
        prompts_left: of which a sequence still runs. Counted: looking at 1,024 prompts for each token would be slower
            than the tokens.
    """

    def __init__(self, job: Job, arrivals: Arrivals | None, used: Usage) -> None:
        self.timer = job.telemetry.request(
            job.model.name, job.prompt_tokens, job.operation, priority=job.requests[0].priority
        )
        self.prompts_left = len(job.requests)
        self._job = job
        self._arrivals = arrivals
        self._used = used
        count = job.params.num_sequences
        self._prompts = {request.request_id: _Prompt(i, i * count, request) for i, request in enumerate(job.requests)}
        self._stages: dict[int, Stage] = {}
        self._cached_tokens = 0
        self._explaining = None if job.explaining is None else job.explaining[0]
        if job.explaining is not None:
            job.explaining[0].begin(job, job.explaining[1])
        genai.runs(job)

    def stopped(self) -> None:
        """Nothing more comes: count the prompts that were cut short, and tell what has come if the job is traced."""
        for prompt in self._prompts.values():
            if prompt.sequences_left:
                self._count(prompt)
        sequences = (sequence for prompt in self._prompts.values() for sequence in prompt.sequences)
        genai.answered(sequences, self._cached_tokens)
        if (explaining := self._explaining) is not None:
            for name, prompt in self._prompts.items():
                explaining.ended(name, prompt.sequences, prompt.forced)

    async def taken(self, updates: list[SequenceUpdate]) -> list[Element]:
        """What the updates say, with at most one piece per choice and stage, in the order of first appearance.

        A job that tells origins has one for each run of tokens of one origin.
        """
        turns = Turns() if len(updates) > FEW else None
        elements: list[Element] = []
        growing: dict[int, _Growing] = {}
        for update in apart(updates) if self._job.tells_origins else updates:
            if turns is not None and turns.over:
                await turns.pause()
            prompt = self._prompts[update.request_id]
            if (reason := update.finish_reason) is not None and reason in _FAILED:
                self.timer.finished(reason)
                raise _FAILED[reason](str(update.stop_reason))
            if not prompt.sequences:
                elements.append(self._begin(prompt, update))
            sequence = prompt.sequences[update.index]
            if sequence.finish_reason is not None:
                continue  # ended here by a stop string while the engine was a step ahead
            prompt.forced += update.num_forced
            self._job.accepted += update.num_accepted
            self._job.rejected += update.num_rejected
            choice = prompt.first_choice + update.index
            forced = self._job.tells_origins and update.num_forced > 0
            if (grown := growing.get(choice)) is not None and grown.forced != forced:
                elements += self._pieces(choice, grown)
                grown = None
            if grown is None:
                grown = growing[choice] = _Growing(sequence, len(sequence.token_ids), forced)
            grown.texts.append(sequence.push(update))
            if sequence.finish_reason is not None:
                await self._ended(prompt, sequence, by_itself=update.finish_reason is not None)
        for choice, grown in growing.items():
            if turns is not None and turns.over:  # each token is counted: a long piece takes long
                await turns.pause()
            elements += self._pieces(choice, grown)
        return elements

    def _begin(self, prompt: _Prompt, first: SequenceUpdate) -> Begun:
        request, tokenizer, params = prompt.request, self._job.model.tokenizer, self._job.params
        count, prompt_ids = params.num_sequences, request.prompt_token_ids
        prompt.sequences_left = count
        marks = self._job.marks
        prompt.sequences = [SequenceText(tokenizer, params, prompt_ids, index, marks) for index in range(count)]
        prompt.cached_tokens = first.num_cached_tokens
        self._cached_tokens += first.num_cached_tokens
        placement = (self._arrivals or self._job.model.client).placement(request.request_id)
        if placement is not None:
            self.timer.placed(placement, first.num_cached_tokens)
        if first.prefill is not None:
            self.timer.began(first.prefill)
        if self._explaining is not None:
            self._explaining.began(request.request_id, placement, first)
        return Begun(prompt.number, placement, first.num_cached_tokens, first.prompt_logprobs)

    async def _ended(self, prompt: _Prompt, sequence: SequenceText, *, by_itself: bool) -> None:
        prompt.sequences_left -= 1
        if not prompt.sequences_left:
            self.prompts_left -= 1
            self._count(prompt)
        if by_itself:
            return
        if prompt.sequences_left:  # a stop string ended what the engine would go on with
            await self._job.model.client.abort(prompt.request.request_id, sequence.index)
        elif self._arrivals is not None:
            self._arrivals.leave(prompt.request.request_id)

    def _count(self, prompt: _Prompt) -> None:
        lengths = [len(sequence.token_ids) for sequence in prompt.sequences]
        tokens = len(prompt.request.prompt_token_ids)
        self._used.prompt(self._job.model.cost(), tokens, prompt.cached_tokens, lengths)

    def _pieces(self, choice: int, grown: _Growing) -> Sequence[Piece]:
        sequence = grown.sequence
        piece = Piece(
            choice,
            grown.texts[0] if len(grown.texts) == 1 else "".join(grown.texts),
            sequence.token_ids[grown.first_token :],
            None if sequence.logprobs is None else sequence.logprobs[grown.first_token :],
            sequence.finish_reason,
            sequence.stop_reason,
            sequence.cumulative_logprob,
        )
        piece.forced_tokens = len(piece.token_ids) if grown.forced else 0
        self.timer.tokens(choice, len(piece.token_ids))
        if piece.finish_reason is not None:
            self.timer.finished(piece.finish_reason)
        if self._job.stage is None:
            return [piece]
        if (stage := self._stages.get(choice)) is None:
            stage = self._stages[choice] = self._job.stage()
        piece.lengths = sequence.lengths[grown.first_token :]
        pieces = stage(piece)
        self._used.reasoning_tokens += sum(each.reasoning_tokens for each in pieces)
        return pieces


def apart(updates: Iterable[SequenceUpdate]) -> Iterator[SequenceUpdate]:
    """The same updates, with sampled tokens and forced ones never in one."""
    for update in updates:
        sampled = len(update.token_ids) - update.num_forced
        if not update.num_forced or not sampled:
            yield update
            continue
        ids, logprobs = update.token_ids, update.logprobs
        first = logprobs and logprobs[:sampled]
        yield replace(update, token_ids=ids[:sampled], logprobs=first, num_forced=0, finish_reason=None)
        rest = replace(update, token_ids=ids[sampled:], logprobs=logprobs and logprobs[sampled:])
        rest.num_accepted = rest.num_rejected = 0
        yield rest
