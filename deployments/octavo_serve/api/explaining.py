"""What a gateway remembers of the last requests, so that it can say why they took so long (`api.explanation`).

Bounded in bytes: who asked longest ago is forgotten. Everything happens in the gateway's event loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from octavo.request import Placement, SequenceUpdate
from octavo.text.output import SequenceText
from octavo.text.responses.families import template_of
from octavo_serve.api.chats import Chat
from octavo_serve.api.jobs import Job
from octavo_serve.api.known_prompts import KnownPrompt, KnownPrompts
from octavo_serve.api.misses import Found, Miss, miss_of
from octavo_serve.api.model import ServedModel
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.api.tracing import Course

MAX_PROMPTS = 8
"""Of one request that are remembered."""

Marks = Sequence[tuple[str, float]]
"""What a request did before it looked for a shard: what began, and when."""


@dataclass(frozen=True, slots=True)
class Before:
    """What is known of a request before it runs.

    Attributes:
        owner: name of the key that asks.
    """

    owner: str
    chat: Chat | None
    marks: Marks
    block_size: int


@dataclass(slots=True, eq=False)
class Story:
    """One prompt of a request.

    Attributes:
        marks: what it did until its prompt was there.
        course: what it did from then on; None before.
        near: the nearest earlier prompt of its owner, when it came.
        other: the same of all owners, where its own had none.
        miss: why its prefix was not found, as its owner may know it.
        generated: tokens of all of its sequences; of them `forced` were known without being sampled.
        end: seconds on the monotonic clock; None while it runs.
    """

    prompt: KnownPrompt
    model: ServedModel
    marks: Marks
    since: float
    block_size: int
    sequences: int
    everything: bool
    near: KnownPrompt | None
    other: KnownPrompt | None
    course: Course | None = None
    placement: Placement | None = None
    found: Found | None = None
    miss: Miss | None = None
    others_miss: Miss | None = None
    generated: int = 0
    forced: int = 0
    end: float | None = None
    finish: list[str] = field(default_factory=list)


class Explaining:
    """The stories of one gateway's last requests.

    Args:
        max_bytes: of all of them.
    """

    def __init__(self, max_bytes: int, telemetry: Telemetry) -> None:
        self._stories: dict[str, Story] = {}
        self._prompts = KnownPrompts(max_bytes, lambda prompt: self._stories.pop(prompt.request_id, None))
        self._telemetry = telemetry

    def begin(self, job: Job, before: Before) -> None:
        """A job is about to run."""
        now, marks = time.monotonic(), before.marks
        for request in job.requests[:MAX_PROMPTS]:
            prompt = KnownPrompt.of(request, before.owner, job.hash_name, before.chat, now)
            near = self._prompts.nearest(prompt)
            self._stories[request.request_id] = Story(
                prompt=prompt,
                model=job.model,
                marks=marks,
                since=time.time() - (now - marks[0][1]),
                block_size=before.block_size,
                sequences=job.params.num_sequences,
                everything=job.params.prompt_logprobs is not None,
                near=near,
                other=near or self._prompts.of_others(prompt),
            )
            self._prompts.add(prompt)

    def follow(self, request_id: str, traced: Course | None) -> Course | None:
        """The course of a request that looks for a shard from now on.

        Args:
            traced: its trace's, if it is traced.
        """
        story = self._stories.get(request_id)
        if story is None:
            return traced
        story.course = traced or Course("route", time.monotonic())
        return story.course

    def began(self, request_id: str, placement: Placement | None, first: SequenceUpdate) -> None:
        """A prompt's first token has come."""
        story = self._stories.get(request_id)
        if story is None or placement is None:
            return
        now, prompt = time.monotonic(), story.prompt
        prompt.shard, prompt.began, story.placement = placement.shard, now, placement
        looked = now - (first.prefill or 0.0)
        story.found = Found(first.num_cached_tokens, placement.shard, looked, story.block_size, story.everything)
        story.miss = self._miss(story, story.near)
        story.others_miss = story.miss if story.other is story.near else self._miss(story, story.other)
        if story.others_miss is not None:
            self._telemetry.misses[story.model.name, story.others_miss.reason] += 1

    def _miss(self, story: Story, near: KnownPrompt | None) -> Miss | None:
        assert story.found is not None
        model = story.model
        opens = partial(opens_reasoning, model)
        return miss_of(story.prompt, near, story.found, model.client.held(), model.tokenizer, opens)

    def ended(self, request_id: str, sequences: Sequence[SequenceText], forced: int) -> None:
        """A prompt's answers have come, as far as they do."""
        if (story := self._stories.get(request_id)) is None:
            return
        story.end, story.forced = time.monotonic(), forced
        story.generated = sum(len(each.token_ids) for each in sequences)
        story.finish = [each.finish_reason or "abort" for each in sequences]
        if story.found is None:
            self._prompts.hide(story.prompt)
            return
        story.prompt.tokens.extend(sequences[0].token_ids)
        self._prompts.weigh(story.prompt)

    def latest(self, owner: str | None) -> Iterator[tuple[str, Story]]:
        """Requests that are remembered, each with the story of its first prompt, the latest first.

        Args:
            owner: of whom alone; None: of everybody.
        """
        for name, story in reversed(self._stories.items()):
            job_id, _, number = name.rpartition("-")
            if number == "0" and owner in (None, story.prompt.owner):
                yield job_id, story

    def find(self, job_id: str) -> list[Story]:
        """What is remembered of a request's prompts."""
        names = (f"{job_id}-{number}" for number in range(MAX_PROMPTS))
        return [self._stories[name] for name in names if name in self._stories]


def opens_reasoning(model: ServedModel) -> list[str]:
    """What the thinking of a model begins with."""
    template = template_of(model.tokenizer, model.defaults.response_template)
    fields = () if template is None else template.fields.values()
    openings = (field.opening for field in fields if field.role == "reasoning")
    return [text for node in openings if (text := _literal(node))]


def _literal(node: object) -> str:
    """The text that a pattern matches, where it matches one."""
    if isinstance(node, tuple) and node and node[0] == "seq" and all(part[0] == "char" for part in node[1:]):
        return "".join(part[1] for part in node[1:])
    return ""
