"""Why a request took as long as it did, and why its prefix was found or not: a `Story` and what its shards say of it.

    marks                       course, this gateway's clock
    | model | template | ... | route | queue  prefill  decode | failover | queue ... | respond |
                                     | what the shard says    |          |

All spans lie side by side and are together as long as the request. Of a visit to a shard the gateway knows how long it
took from sending to the last update; the shard's own spans fill that, by its clock and in its order, and what they
leave is the way there and back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.engine.timeline import ShardCourse, Span
from octavo_serve.api.explaining import Story
from octavo_serve.api.fleet import decided
from octavo_serve.api.misses import SENTENCES, Miss, shown
from octavo_serve.api.tracing import Phase
from octavo_serve.wire.messages import Courses


class ExplainedSpan(TypedDict):
    """A part of a request's time.

    `where` is "gateway" or the shard's name; `what` is "prepare", "wait", "prefill", "decode", "transport" or
    "respond"; `cause` says of a wait for what, of preparing what is done. `others` sequences began while it waited;
    `first` tells whether it was the first of the queue. `by` is the request that held it up, for operators.
    """

    at: float
    seconds: float
    where: str
    what: str
    cause: str
    tokens: int
    first: bool
    others: int
    by: str | None
    numbers: Mapping[str, float] | None


class ExplainedTokens(TypedDict):
    """Tokens of a prompt and its answers: `computed` are those of the prompt, again where it was preempted."""

    prompt: int
    cached: int | None
    computed: int | None
    generated: int
    forced: int
    proposed: int
    accepted: int


class NearestPrompt(TypedDict):
    """The nearest earlier prompt: whose, when, and where this one leaves it."""

    id: str
    seconds_before: float
    shard: str
    common_tokens: int
    message: int | None
    before: str | None
    then: str | None
    now: str | None


class ExplainedPrefix(TypedDict):
    """Why a prompt's prefix was found or not."""

    reason: str | None
    sentence: str
    possible_tokens: int
    cached_tokens: int
    predicted_tokens: int
    nearest: NearestPrompt | None
    evicted_seconds_ago: float | None
    evicted_by: str | None
    held_by: list[str]


class ExplainedPrompt(TypedDict):
    """One prompt of a request; `later` are its sequences that queued by themselves, by number."""

    spans: list[ExplainedSpan]
    causes: dict[str, float]
    later: dict[str, list[ExplainedSpan]]
    tokens: ExplainedTokens
    finish_reasons: list[str]
    prefix: ExplainedPrefix | None
    routing: list[dict[str, Any]]


class Explanation(TypedDict):
    """Where a request's time went. `first_token` and `seconds` are counted from when it was read."""

    id: str
    object: str
    created: int
    model: str
    sentence: str
    seconds: float
    first_token: float | None
    running: bool
    prompts: list[ExplainedPrompt]


class RecentRequest(TypedDict):
    """A request that can be explained, in short; `seconds` so far, if it is `running`."""

    id: str
    object: str
    created: float
    model: str
    seconds: float
    first_token: float | None
    running: bool
    prompt_tokens: int
    generated_tokens: int
    finish_reasons: list[str]


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads an explanation.

    Attributes:
        owns: it asked the request.
        operates: it may know of others' requests.
        tells: it may know of caches and shards.
    """

    owns: bool
    operates: bool
    tells: bool


async def explain(job_id: str, stories: Sequence[Story], reader: Reader) -> Explanation:
    """What there is to say of a request's prompts, its shards' part included."""
    prompts = [await _prompt(story, reader) for story in stories]
    first = stories[0]
    start, end = first.marks[0][1], max(story.end or time.monotonic() for story in stories)
    token = min((story.prompt.began for story in stories if story.found is not None), default=None)
    return {
        "id": job_id,
        "object": "request.explanation",
        "created": int(first.since),
        "model": first.model.name,
        "sentence": _sentence(prompts[0], end - start, None if token is None else token - start),
        "seconds": _round(end - start),
        "first_token": None if token is None else _round(token - start),
        "running": any(story.end is None for story in stories),
        "prompts": prompts,
    }


def in_short(job_id: str, story: Story) -> RecentRequest:
    """What a list has of a request, of its first prompt alone."""
    start, end = story.marks[0][1], story.end or time.monotonic()
    return {
        "id": job_id,
        "object": "request",
        "created": round(story.since, 3),
        "model": story.model.name,
        "seconds": _round(end - start),
        "first_token": None if story.found is None else _round(story.prompt.began - start),
        "running": story.end is None,
        "prompt_tokens": story.prompt.num_prompt,
        "generated_tokens": story.generated,
        "finish_reasons": story.finish,
    }


async def _prompt(story: Story, reader: Reader) -> ExplainedPrompt:
    visits = list(_visits(story))
    courses_of, name = story.model.client.courses, story.prompt.request_id
    told = {at: await courses_of(visit.shard, name, b"") for at, visit in enumerate(visits)}
    spans = list(_spans(story, visits, told, reader))
    causes: dict[str, float] = {}
    for span in spans:
        if span["what"] == "wait":
            causes[span["cause"]] = _round(causes.get(span["cause"], 0.0) + span["seconds"])
    last = next((each for each in reversed(told.values()) if each is not None), None)
    courses = {} if last is None else last.courses
    where = visits[-1].shard if visits and reader.tells else ""
    later = {str(index): _late(course, where, reader) for index, course in courses.items() if index}
    return {
        "spans": spans,
        "causes": causes,
        "later": later,
        "tokens": _tokens(story, [each.courses for each in told.values() if each is not None], reader),
        "finish_reasons": story.finish,
        "prefix": _prefix(story, await _gone(story), reader) if reader.tells else None,
        "routing": [] if story.course is None or not reader.tells else [
            decided(story.model.name, decision, at) for at, decision in story.course.decisions
        ],
    }  # fmt: skip


# ---- time ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Visit:
    """A stay at a shard, as the gateway saw it: its phases."""

    shard: str
    phases: list[Phase]

    @property
    def start(self) -> float:
        return self.phases[0].start

    def end(self, now: float) -> float:
        return self.phases[-1].end or now


def _visits(story: Story) -> Iterator[_Visit]:
    visit = None
    for phase in [] if story.course is None else story.course.phases:
        if phase.name == "queue":
            visit = _Visit(str(phase.attributes.get("octavo.shard", "")), [phase])
            yield visit
        elif phase.name in ("prefill", "decode") and visit is not None:
            visit.phases.append(phase)


def _spans(
    story: Story, visits: Sequence[_Visit], told: Mapping[int, Courses | None], reader: Reader
) -> Iterator[ExplainedSpan]:
    start, now = story.marks[0][1], story.end or time.monotonic()
    phases = [] if story.course is None else [p for p in story.course.phases if p.name != "prepare"]
    searches = phases[0].start if phases else now
    for (name, at), (_, until) in pairwise([*story.marks, ("", searches)]):
        if until > at:
            yield _span(at - start, until - at, "gateway", "wait" if name == "model" else "prepare", name)
    at = -1
    for phase in phases:
        begin, end = phase.start - start, (phase.end or now) - start
        if phase.name == "queue":
            at += 1
            yield from _of_visit(visits[at], told[at], begin, visits[at].end(now) - start, now, reader)
        elif phase.name == "respond":
            yield _span(begin, end - begin, "gateway", "respond", "")
        elif phase.name not in ("prefill", "decode"):
            yield _span(begin, end - begin, "gateway", "wait", "queue" if phase.name == "route" else phase.name)


def _of_visit(
    visit: _Visit, told: Courses | None, begin: float, end: float, now: float, reader: Reader
) -> Iterator[ExplainedSpan]:
    """The shard's spans, cut where the gateway had left it; or what the gateway saw, where it tells nothing."""
    where = visit.shard if reader.tells else "shard"
    course = None if told is None else told.courses.get(0)
    if course is None or not course.queued:
        for phase in visit.phases:
            what = "wait" if phase.name == "queue" else phase.name
            start = begin + phase.start - visit.start
            yield _span(start, (phase.end or now) - phase.start, where, what, "shard" if what == "wait" else "")
        return
    at = begin
    for span in course.spans:
        seconds = min(span.seconds, end - at)
        yield _told(span, at, seconds, where, reader)
        at += seconds
    if end > at:
        yield _span(at, end - at, where, "transport", "")


def _late(course: ShardCourse, where: str, reader: Reader) -> list[ExplainedSpan]:
    return [_told(span, span.start, span.seconds, where, reader) for span in course.spans]


def _told(span: Span, at: float, seconds: float, where: str, reader: Reader) -> ExplainedSpan:
    made = _span(at, seconds, where, span.what, span.cause)
    made["tokens"], made["first"], made["others"] = span.tokens, span.first, span.others
    made["by"], made["numbers"] = (span.by or None, span.numbers) if reader.operates else (None, None)
    return made


def _span(at: float, seconds: float, where: str, what: str, cause: str) -> ExplainedSpan:
    return {
        "at": _round(at), "seconds": _round(seconds), "where": where, "what": what, "cause": cause, "tokens": 0,
        "first": False, "others": 0, "by": None, "numbers": None,
    }  # fmt: skip


# ---- tokens and prefix --------------------------------------------------------------------------------------------


def _tokens(story: Story, told: Sequence[Mapping[int, ShardCourse]], reader: Reader) -> ExplainedTokens:
    courses = [course for each in told for course in each.values()]
    computed = sum(span.tokens for course in courses for span in course.spans if span.what == "prefill")
    return {
        "prompt": story.prompt.num_prompt,
        "cached": story.found.tokens if reader.tells and story.found is not None else None,
        "computed": computed if reader.tells and courses else None,
        "generated": story.generated,
        "forced": story.forced,
        "proposed": sum(course.proposed for course in courses),
        "accepted": sum(course.right for course in courses),
    }


async def _gone(story: Story) -> tuple[float, str] | None:
    """How the first block that was not found had left the shard that computed it."""
    miss = story.miss
    if miss is None or miss.near is None or miss.reason != "evicted" or story.found is None:
        return None
    block = story.prompt.chain[story.found.tokens // story.block_size]
    told = await story.model.client.courses(miss.near.shard, story.prompt.request_id, block)
    return None if told is None else told.gone


def _prefix(story: Story, gone: tuple[float, str] | None, reader: Reader) -> ExplainedPrefix | None:
    if story.found is None or story.placement is None:
        return None
    miss = story.others_miss if reader.operates else story.miss
    size = story.block_size
    possible = (story.prompt.num_prompt - 1) // size * size
    block = story.found.tokens // size
    held = story.model.client.held() if miss is not None and miss.reason == "other_shard" else {}
    return {
        "reason": None if miss is None else miss.reason,
        "sentence": "All that could be was found." if miss is None else SENTENCES[miss.reason],
        "possible_tokens": possible,
        "cached_tokens": story.found.tokens,
        "predicted_tokens": story.placement.cached_tokens,
        "nearest": None if miss is None else _nearest(story, miss, reader),
        "evicted_seconds_ago": None if gone is None else _round(gone[0]),
        "evicted_by": gone[1] if gone is not None and reader.operates else None,
        "held_by": [name for name, blocks in held.items()
                    if name != story.found.shard and story.prompt.chain[block] in blocks],
    }  # fmt: skip


def _nearest(story: Story, miss: Miss, reader: Reader) -> NearestPrompt | None:
    near = miss.near
    if near is None:
        return None
    own = reader.owns and near.owner == story.prompt.owner
    differs = miss.common < story.prompt.num_prompt and own
    texts = shown(story.prompt, near, miss.common, story.model.tokenizer) if differs else (None, None, None)
    return {
        "id": near.request_id.rpartition("-")[0],
        "seconds_before": _round(story.prompt.at - near.at),
        "shard": near.shard,
        "common_tokens": miss.common,
        "message": miss.message,
        "before": texts[0],
        "then": texts[1],
        "now": texts[2],
    }


# ---- in a sentence ------------------------------------------------------------------------------------------------

_CAUSES = {
    "model": "the model to be there, or for a turn of the gateway",
    "queue": "room at a shard, in the gateway's queue",
    "failover": "another shard, after its own was lost",
    "elsewhere": "its prompt to be computed on another shard",
    "shard": "its turn at the shard, which says no more of it",
    "engine": "the step under way",
    "grammar": "its grammar to be compiled",
    "adapter": "its adapter to be loaded",
    "tier": "blocks to be read from the slower tier",
    "peer": "blocks to come from another shard",
    "below": "others, which come before it whatever they are",
    "place": "a place: as many ran as may (max_num_seqs)",
    "blocks": "KV blocks: the cache was full of running requests",
    "budget": "tokens of a step: other prompts took the budget",
    "preempted": "blocks again, which others had needed",
    "failed": "its turn again, after a step had failed",
    "apart": "others, which were tried alone after a step had failed",
}


def _sentence(prompt: ExplainedPrompt, seconds: float, first: float | None) -> str:
    said = [f"It took {seconds:.2f} s" + (f", {first:.2f} s of them to the first token." if first is not None else ".")]
    longest = sorted(prompt["causes"].items(), key=lambda each: -each[1])[:3]
    waits = [f"{waited:.2f} s for {_CAUSES[cause]}" for cause, waited in longest if waited >= max(0.01, seconds / 100)]
    if waits:
        said.append(f"It waited {'; '.join(waits)}.")
    computing = sum(span["seconds"] for span in prompt["spans"] if span["what"] == "prefill")
    tokens, cached = prompt["tokens"]["computed"], prompt["tokens"]["cached"]
    if tokens is not None and cached is not None:
        said.append(f"{tokens} prompt tokens were computed in {computing:.2f} s, {cached} were in the cache.")
    return " ".join(said)


def _round(seconds: float) -> float:
    return round(seconds, 6)
