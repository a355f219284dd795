"""The API's operations for any protocol: from `Asked` to a job, and from a job to its answer or events.

HTTP and Python handle calls use the same surfaces, so they validate, route and answer alike.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from octavo.errors import BadRequest
from octavo.pooled import check_task
from octavo.request import BELOW_ALL, Request, SamplingParams
from octavo.text.grammars.brief import TakesLong, briefly
from octavo.text.responses.bound import BoundTemplate
from octavo.text.template_process import PROCESSES
from octavo_serve.api import genai
from octavo_serve.api.batches.batches import Batches
from octavo_serve.api.body import B
from octavo_serve.api.bounds import MAX_TEXTS, BodyBounds, Limits
from octavo_serve.api.chats import Chat, render
from octavo_serve.api.constraining import constrain, constrains
from octavo_serve.api.detached import Detached
from octavo_serve.api.explaining import Before, Explaining
from octavo_serve.api.generation import run
from octavo_serve.api.jobs import Asked, Job
from octavo_serve.api.model import Claim, ServedModel
from octavo_serve.api.pieces import Whole
from octavo_serve.api.prompts import is_long, prepare
from octavo_serve.api.reading import reading_of, template_for
from octavo_serve.api.records import Records
from octavo_serve.api.registry import Registry
from octavo_serve.api.surface import A, E, Surface, Writer
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.api.tenants import NOBODY, Tenant
from octavo_serve.api.threads import MAX_THREADS, MAX_WAITING, FairThreads, Threads
from octavo_serve.api.tracing import Course, Tracer, course
from octavo_serve.api.turns import PIECES
from octavo_serve.api.writing import write, write_answer

T = TypeVar("T")

MAX_PARSED = 2
"""Large bodies parsed at the same time; a bound, so that many of them leave the other cores free."""
PROMPT_NICE = 5
"""Of the threads that tokenise long prompts: the event loop goes first where more wants to run than there are cores."""
MAX_GRAMMARS = 2
"""Requests whose grammars are made at the same time."""
MAX_SLOW_GRAMMARS = 32
"""Requests whose grammars take long to make and may run or wait, one after the other: 1,024 new tools take 1 to 5 s."""
MAX_TEMPLATES = 64
"""Templates that may be rendered or wait outside the event loop: a minute of work if none of them ends."""


class Service:
    """The API for the models of one gateway.

    Attributes:
        tracer: of requests; None: none is traced.
        explaining: remembers the last requests; None: none is.
        held_texts: characters of the texts that are held now of requests with many (see `pooling`).
        windows: by model, places of such texts that run or wait at shards.
    """

    def __init__(self, models: Registry, limits: Limits, telemetry: Telemetry) -> None:
        self.models = models
        self.limits = limits
        self.telemetry = telemetry
        self.tracer: Tracer | None = None
        self.explaining: Explaining | None = None
        self.held_texts = 0
        self.windows: dict[str, asyncio.Semaphore] = {}
        self.records = Records()
        self.batches = Batches(telemetry.batches)
        self.detached = Detached()
        self.lateness = telemetry.lateness
        self.threads = Threads()
        self.prompt_threads = Threads(max(1, min(MAX_THREADS, (os.cpu_count() or 1) - 1)), nice=PROMPT_NICE)
        self.grammar_threads = FairThreads(  # so that tools hold up no answer
            MAX_GRAMMARS, MAX_WAITING, "requests whose tools or schemas are new here", PROMPT_NICE
        )
        self.slow_grammar_threads = FairThreads(  # and many tools no other grammar
            1, MAX_SLOW_GRAMMARS, "requests with many new tools", PROMPT_NICE
        )
        self.body_threads = Threads(MAX_PARSED)
        self.template_threads = Threads(PROCESSES, MAX_TEMPLATES)  # so that a template without end does not delay texts

    @property
    def bounds(self) -> BodyBounds:
        """Bounds of a body, for the models served now."""
        return BodyBounds(self.models.longest_context)

    @property
    def bounds_of_many(self) -> BodyBounds:
        """The same of a body that holds many texts."""
        return BodyBounds(self.models.longest_context, MAX_TEXTS)

    async def job(self, asked: Asked) -> Job:
        """Turn `asked` into a job, checked against its model; waits if the model is still loading.

        One that would wait too long is refused before anything is rendered or tokenised.

        Raises:
            BadRequest, Overloaded, DeadlineMissed, ModelNotReady, EngineDead.
        """
        genai.asks(asked)
        marks = [("model", time.monotonic())]
        self.lateness.check()
        self.telemetry.ledger.quotas.check(asked.tenant)
        content = asked.content
        chat = content if isinstance(content, Chat) else None
        check = None if chat is None else chat.check
        (sequences, tokens), claim = asked.size, Claim.of(asked.deadline_ms, asked.tenant)
        model = await self.models.served(asked.model, asked.session, check, tokens, ("generate",))
        reading, template, text = None, None, ""
        with model.admitted(asked.priority, asked.key, sequences, tokens, claim):
            info = await model.client.describe()
            check_task("generate", info.tasks, model.name)
            marks.append(("template", time.monotonic()))
            if isinstance(content, Chat):
                text = await render(content, model.tokenizer, self.template_threads, model.defaults.response_template)
                if not text:
                    raise BadRequest("the model's chat template makes no prompt of these messages", asked.param)
                template = template_for(content, model)
                reading = reading_of(content, template, text)
                content = [text]
            if constrains(asked.params, chat):
                marks.append(("grammar", time.monotonic()))
                asked.params = await self._constrained(asked, chat, model, template, text)
            marks.append(("tokens", time.monotonic()))
            request_id = (
                f"{asked.kind}-{asked.number or secrets.token_hex(12)}"  # a client's own may be in use elsewhere
            )
            work = partial(prepare, model.tokenizer, info, content, asked, request_id, model.adapter, claim)
            requests, texts = (
                await self.prompt_threads.finish(work) if is_long([*content, asked.prediction]) else work()
            )
            longest = max(len(request.prompt_token_ids) for request in requests)
            model.defaults.fill_in(asked.params, asked.given, info.max_model_len - longest)
        before = Before(asked.owner, chat, marks, info.block_size)
        explaining = self.explaining if asked.priority < BELOW_ALL else None  # a batch would push out everybody's
        return Job(
            id=request_id,
            created=int(time.time()),
            model=model,
            hash_name=info.hash_name,
            params=asked.params,
            requests=requests,
            prompt_texts=texts,
            stage=asked.stage if reading is None else reading.stage,
            telemetry=self.telemetry,
            marks=None if reading is None else reading.marks,
            tells_origins=asked.tells_origins,
            context=asked.context,
            operation="text_completion" if chat is None else "chat",
            tenant=asked.tenant,
            answer_tokens=sum(_answer_tokens(request, info.max_model_len) for request in requests),
            explaining=None if explaining is None else (explaining, before),
        )

    def follow(self, request_id: str) -> Course | None:
        """The course of a request that looks for a shard from now on; None where nobody wants to know it."""
        traced = course()
        return traced if self.explaining is None else self.explaining.follow(request_id, traced)

    async def _constrained(
        self, asked: Asked, chat: Chat | None, model: ServedModel, template: BoundTemplate | None, text: str
    ) -> SamplingParams:
        """`constrain` beside the loop: those that take long one after the other, so that no other waits for them."""
        work = partial(constrain, asked.params, chat, model, template, text)
        try:
            return await self.grammar_threads.run(asked.asker, briefly, work)
        except TakesLong:
            return await self.slow_grammar_threads.run(asked.asker, work)

    async def whole(self, writer: Writer[Any, Any]) -> Whole:
        """Run a writer's job to its end."""
        whole = writer.gathered()
        async with aclosing(run(writer.job)) as stream:
            async for elements in stream:
                whole.add(elements)
        return whole

    async def answer(self, surface: Surface[B, A, E], body: B, tenant: Tenant = NOBODY) -> A:
        """Answer a request.

        Raises:
            BadRequest, Overloaded, ModelNotReady, EngineDead.
        """
        writer = await self._writer(surface, body, tenant)
        return await write_answer(writer, await self.whole(writer), self.threads, _same, _same)

    async def events(self, surface: Surface[B, A, E], body: B, tenant: Tenant = NOBODY) -> AsyncGenerator[E, None]:
        """The same answer event by event; the first event comes with the first token."""
        writer = await self._writer(surface, body, tenant)
        async with aclosing(run(writer.job)) as stream:
            async for elements in stream:
                for number, element in enumerate(elements, 1):
                    if number % PIECES == 0:
                        await asyncio.sleep(0)
                    for event in await write(writer, [element], self.threads, _same, _same):
                        yield event

    async def _writer(self, surface: Surface[B, A, E], body: B, tenant: Tenant) -> Writer[A, E]:
        asked = surface.ask(body, self.limits)
        asked.tenant = tenant
        return surface.writer(body, await self.job(asked), True)


def _answer_tokens(request: Request, max_model_len: int) -> int:
    """Tokens that all sequences of a prompt may have."""
    params = request.params
    room = max_model_len - len(request.prompt_token_ids)
    return params.num_places * (room if params.max_tokens is None else params.max_tokens)


def _same(value: T) -> T:
    return value
