"""One request on its way over the shards: what it has been told, and what the next shard is asked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Container
from dataclasses import replace

from octavo.engine.async_engine import Stream
from octavo.errors import EngineDead, OctavoError
from octavo.request import Placement, Request, SequenceUpdate
from octavo_serve.api.tracing import Course
from octavo_serve.gateway.hashing import hashed_for
from octavo_serve.gateway.link import Link, MoveReason
from octavo_serve.gateway.picker import Picked
from octavo_serve.gateway.suspicion import Suspicion
from octavo_serve.gateway.unread import FEW, Unread
from octavo_serve.wire.messages import ModelInfo

logger = logging.getLogger("ray.serve")

MAX_DECISIONS = 8
"""Of a request's router that its course keeps."""

ALL_BLOCKS = 2**30
"""All that a moved request has computed are where it ran."""


class RunStream(Stream):
    """What comes from the shard that has a run; the run is told when it comes, not when it is taken."""

    def __init__(self, run: RequestRun) -> None:
        super().__init__(asyncio.get_running_loop())
        self._run = run

    @property
    def holds_updates(self) -> bool:
        """Whether something waits to be taken."""
        return bool(self._updates)

    def updated(self, updates: list[SequenceUpdate]) -> None:
        if self._run.suspicion.alone:
            updates = self._run.told_of_trial(updates)
        if not updates:
            return
        self._run.arrived(updates)
        super().updated(updates)
        first = updates[0]  # beams are told many tokens at a time
        if len(self._updates) > FEW or first.prompt_logprobs is not None or len(first.token_ids) > FEW:
            self._run.unread.add(self._run, updates)

    def give_up(self) -> None:
        """Let go of what waits; who takes next is told."""
        self._updates.clear()
        self.failed("", OctavoError("too much of the answer waited for a client that did not read it"))


class RequestRun:
    """One request on its way over one shard or several.

    Attributes:
        request: what the next shard is asked.
        info: the model that it was made for; None where no shard had said yet.
        living: indices of the sequences that have not ended.
        ran: whether the shard that has it now has said anything of it.
        stream: what comes from the shard that has it now.
        suspicion: whether it has stopped shards.
    """

    def __init__(self, request: Request, info: ModelInfo | None, unread: Unread, course: Course | None) -> None:
        self.request = request
        self._course = course
        self.unread = unread
        self.info = info
        self.living = set(range(request.params.num_sequences))
        self.ran = False
        self.suspicion = Suspicion()
        self.stream: RunStream
        self._picked: Picked | None = None
        self._emitted: list[list[int]] = [[] for _ in self.living]
        self._sums = [0.0 for _ in self.living]  # cumulative log probabilities
        self._sums_before = list(self._sums)  # those of earlier shards
        self._begun = False
        self._blocks_at = ""  # shard that has computed what it said so far, and lives

    def fit(self, info: ModelInfo | None) -> None:
        """Make the request one for the model as it is now, unless another set of weights has begun to answer it.

        Raises:
            EngineDead: it has, or the model is quite another.
        """
        if info is None:
            return
        if self.info not in (None, info) and (self._begun or replace(info, hash_name=self.info.hash_name) != self.info):
            raise EngineDead("the model was replaced by another while this request ran; send it again")
        self.info = info
        self.request = hashed_for(self.request, info)

    def enter(self, picked: Picked) -> None:
        emitted = self.request.emitted
        if self._begun:
            emitted = [tokens if index in self.living else None for index, tokens in enumerate(self._emitted)]
            self._sums_before = list(self._sums)
        self.suspicion.enters()
        placement = picked.placement
        if self._blocks_at:
            placement = replace(placement, peer=self._blocks_at, peer_blocks=ALL_BLOCKS)
        self.request = replace(
            self.request,
            placement=placement,
            emitted=emitted,
            alone=self.suspicion.alone,
            made_for="" if self.info is None else self.info.hash_name,
        )
        self.ran = False
        self.stream = RunStream(self)
        picked.link.submit(self.request, self.stream)
        self._picked = picked
        if self._course is not None:
            self._trace_placement(self._course, picked)

    def _trace_placement(self, course: Course, picked: Picked) -> None:
        placement = picked.placement
        if picked.decision is not None and len(course.decisions) < MAX_DECISIONS:
            course.decisions.append((time.time(), picked.decision))
        course.say(
            shard=placement.shard,
            route_reason=placement.reason,
            predicted_cached_tokens=placement.cached_tokens,
            predicted_first_token_seconds=placement.first_token,
        )
        if self.request.emitted is not None:
            course.say(resumed_tokens=sum(map(len, self._emitted)))
        course.enter("queue")
        course.say(shard=placement.shard)

    def trace_prefill(self, placement: Placement) -> None:
        """Its prompt is computed on another shard now."""
        if self._course is not None:
            self._course.enter("elsewhere")
            self._course.say(shard=placement.shard)

    def moves(self, reason: MoveReason, sharing: Container[str] = ()) -> None:
        """Its shard has it no longer: what follows is the search for another.

        Args:
            sharing: shards from which its KV blocks can be fetched while they live.
        """
        placement = self.request.placement
        lives = reason == "left" and placement is not None and placement.shard in sharing
        self._blocks_at = placement.shard if lives and placement is not None else ""
        if self._course is not None and self.living:
            self._course.fail(reason)
            self._course.enter("failover")
            self._course.say(failover_reason=reason)

    def leave(self) -> None:
        """Whatever happened, this shard is done with the request: its place is free."""
        if (picked := self._picked) is None:
            return
        if self.living:
            picked.link.abort(self.request.request_id)
        elif self._course is not None:
            self._course.enter("respond")
        picked.link.forget(self.request.request_id)
        picked.ended(ran=self.ran)
        self._picked = None

    def give_up(self) -> None:
        """End the request: too much of it waits to be read."""
        name = self.request.request_id
        logger.warning("%s: its client does not read what waits for it; it is ended", name, extra={"request_id": name})
        self.stream.give_up()
        self.leave()

    def end(self, index: int) -> None:
        """The caller wants no more of a sequence; what has come of it already is not taken back."""
        self.living.discard(index)
        if self._picked is not None:
            self._picked.link.abort(self.request.request_id, index)

    @property
    def told(self) -> dict[int, int]:
        """Tokens that each of its living sequences has told."""
        return {index: len(self._emitted[index]) for index in self.living}

    @property
    def link(self) -> Link | None:
        """To the shard that has it now."""
        return None if self._picked is None else self._picked.link

    def told_of_trial(self, updates: list[SequenceUpdate]) -> list[SequenceUpdate]:
        """Note when a run begins to be alone at its shard, and when that is over; returns the other updates."""
        kept = []
        for update in updates:
            if update.token_ids or update.finish_reason is not None:
                kept.append(update)
            else:
                self.suspicion.turns()
        return kept

    def arrived(self, updates: list[SequenceUpdate]) -> None:
        """Note what came; of a request that has moved, make it what the unbroken run would have said.

        Once all has come the shard's place is free, whether somebody takes it or not.
        """
        moved = self.request.emitted is not None
        if self._course is not None and not self.ran:
            self._course.began(updates[0].prefill)
        self._begun = self.ran = True
        for update in updates:
            index = update.index
            self._emitted[index] += update.token_ids
            if moved:
                update.num_cached_tokens = 0  # the client was told of the prompt's already
                update.cumulative_logprob += self._sums_before[index]
            self._sums[index] = update.cumulative_logprob
            if update.finish_reason is not None:
                self.living.discard(index)
        if not self.living:
            self.leave()
