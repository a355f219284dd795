"""The engine: schedule -> execute -> commit, in tokens only."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from octavo.config import EngineConfig
from octavo.constraint import Grammar
from octavo.cost_model import CostModel, attended
from octavo.engine.adapters import Adapters
from octavo.engine.admission import ModelLimits
from octavo.engine.batch import BatchBuilder, smallest_batch
from octavo.engine.beam import Beams
from octavo.engine.below import may_give_way
from octavo.engine.constrained import RequestRules, is_constrained
from octavo.engine.decisions import Decision, DecisionKind, DecisionLog
from octavo.engine.drafter import Drafter, load_drafter
from octavo.engine.drafting import Drafting
from octavo.engine.fetches import Fetches
from octavo.engine.isolation import Isolation
from octavo.engine.masks import begin_masks
from octavo.engine.patience import FIRST, Patience
from octavo.engine.plan import InFlight, StepPlan
from octavo.engine.scheduler import Scheduler
from octavo.engine.speculation import Speculation
from octavo.engine.stats import NO_STATES, EngineStats, StateStats
from octavo.engine.timeline import ANY, ShardCourse, courses
from octavo.errors import BadRequest, ConfigError, EngineDead, OctavoError
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.state_pool import StatePool
from octavo.kvcache.tier import Bytes, Peers, Tier, TierCounters
from octavo.load import ShardState
from octavo.pooling import PoolingInfo
from octavo.request import BELOW_ALL, Request, SamplingParams, SequenceUpdate
from octavo.source import Source
from octavo.step import GaveWay
from octavo.text.grammars.compiler import Compiler
from octavo.text.grammars.tokens import Vocabulary
from octavo.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from octavo.execution.executor import Executor, Wait
    from octavo.execution.ranks import Launch

logger = logging.getLogger(__name__)

TRIAL_TOKENS = 2
"""Tokens that a suspect tells before it joins the others. With two steps in flight its last shard may have computed one
token more than the gateway heard of; the step that stopped it was then the one for the second token from here."""

MAX_TICKETS = 16384
"""Tickets kept for a reporter; a router that misses some counts those requests twice for a few seconds."""


class _Step(NamedTuple):
    """A step in flight."""

    plan: StepPlan
    books: InFlight
    wait: Wait


class Engine:
    """One model, one KV pool, one loop; single-threaded (`AsyncEngine` puts it into a thread).

    Args:
        name: of the model; block hashes start from it, so the router must use the same.
        executor: what runs the steps.
        end_token_ids: tokens that end a sequence unless a request says `ignore_eos`; those that the model cannot draw
            do nothing.
        clock: monotonic seconds.
        tokenizer: of the model, for grammars; None: there are none.
        pooling: how the model makes vectors; None: it makes none.
        drafter: a draft model, if there is one.
        tier: where blocks go that the cache has no room for.

    Attributes:
        config: as given, but for an encoder (`encoder_config`).
        compiler: of grammars.
        patience: seconds that `step` may take now before it counts as stuck; another thread may read it.
        isolation: who runs apart, and why.
        adapters: that are loaded, and the requests that wait for one.
        arrivals: what happens to requests before they come into the scheduler's queue.
        tickets: routers' names of requests that `state` counts; whoever reports the state empties it.
        hurry: [1], not 0 while somebody waits for whom steps of those below all others give way; another thread may
            set it.
        given: blocks that were copied for other shards.
    """

    def __init__(
        self,
        name: str,
        executor: Executor,
        config: EngineConfig,
        end_token_ids: Iterable[int],
        clock: Callable[[], float] = time.monotonic,
        tokenizer: Tokenizer | None = None,
        pooling: PoolingInfo | None = None,
        drafter: Drafter | None = None,
        tier: Tier | None = None,
    ) -> None:
        spec, num_blocks = executor.spec, executor.num_blocks
        pooling = pooling or PoolingInfo(tasks=())
        if spec.encoder is not None:
            config = encoder_config(config, spec.max_position_embeddings, pooling, executor.max_in_flight)
            pooling = dataclasses.replace(pooling, max_tokens=config.max_model_len)  # a setting may say more
            num_blocks = 2 * config.max_num_seqs  # a number for each prompt, and as many to spare
        states = None
        if (room := executor.states) is not None:
            states = StatePool(room.count, room.interval)
            config = recurrent_config(config, room.count)
        caching, groups = config.enable_prefix_caching, executor.groups
        held = groups.most_tokens(num_blocks, config.block_size)
        self.config = config
        self.clock = clock
        self.executor = executor
        self.limits = ModelLimits(
            name,
            spec.vocab_size,
            _max_model_len(config, spec.max_position_embeddings, held),
            frozenset(token for token in end_token_ids if 0 <= token < spec.vocab_size),
            tasks=("generate", *pooling.tasks) if spec.generates else pooling.tasks,
            pooling=pooling,
            takes_whole=spec.encoder is not None,
        )
        vocabulary = Vocabulary(tokenizer, spec.vocab_size) if tokenizer is not None and spec.generates else None
        self._tokenizer = tokenizer
        self.compiler = None if vocabulary is None else Compiler(vocabulary)
        self.pool = BlockPool(num_blocks, config.block_size, caching=caching, states=states, groups=groups)
        make = Scheduler if config.record is None else _recorded()
        self.scheduler = make(config, self.limits, self.pool, CostModel(), clock)
        self.adapters = Adapters(executor, config.lora_bytes, config.max_num_queued_requests)
        if _speculates(config, executor):
            in_flight = executor.max_in_flight
            drafting = None if drafter is None else Drafting(drafter, in_flight)
            self.scheduler.proposer = Speculation(self.scheduler.cost_model, config.max_num_seqs, in_flight, drafting)
        if tier is not None and executor.kv is not None:
            self.scheduler.fetches = Fetches(tier, executor.kv, self.pool, self.scheduler.cost_model)
        self._batches = BatchBuilder()
        self._in_flight: deque[_Step] = deque()
        self._steps = 0
        self.isolation = Isolation()
        self._reached: dict[str, dict[int, int]] = {}  # what those in a trial have computed once they have passed
        self._errors: dict[str, Exception] = {}  # of those who raised alone
        self._patience = Patience(self.scheduler.cost_model)
        self.patience = FIRST
        self._ended = clock()  # the last step
        self.generation_tokens = self.given = 0
        self.arrivals = DecisionLog()
        self.tickets: deque[str] = deque(maxlen=MAX_TICKETS)
        self.hurry = np.zeros(1, np.int32)

    @classmethod
    def load(
        cls,
        source: Source,
        config: EngineConfig,
        tokenizer: Tokenizer,
        *,
        progress: bool = False,
        launch: Launch | None = None,
        first: Source | None = None,
    ) -> Engine:
        """Load a model into this process, or what stands for it in a rehearsal.

        Args:
            launch: starts the other tensor-parallel ranks; None makes them children of this process.
            first: what the config names, where `source` may have come in its place.

        Raises:
            ModelError, ConfigError: it cannot be loaded, or not with these settings.
        """
        executor: Executor
        drafter = tier = None
        if config.rehearsal is not None:  # it needs no model's code
            from octavo.rehearsal.scripted import load_rehearsal
            from octavo.rehearsal.simulated import POOLING

            executor, pooling = load_rehearsal(config, tokenizer), POOLING
        else:
            from octavo.engine.disk_cache import open_tier
            from octavo.execution.load import load_executor, load_pooling

            if config.draft is not None:
                drafter, config = load_drafter(source, config, tokenizer)
            try:
                executor = load_executor(source, config, progress=progress, launch=launch)
                tier = open_tier(source, config, executor, first)
            except BaseException:
                if drafter is not None:
                    drafter.close()
                raise
            pooling = load_pooling(source)
        ends = tokenizer.eos_token_ids
        return cls(
            source.name, executor, config, ends, tokenizer=tokenizer, pooling=pooling, drafter=drafter, tier=tier
        )

    def add(self, request: Request, matcher: LLMatcher | None = None) -> None:
        """Queue a request, or have it wait for its adapter; see `Scheduler.add`.

        Args:
            matcher: of its grammar, from `compiler`; None: the grammar is compiled here and now.
        """
        if request.adapter is not None:
            self.scheduler.check(request)
            if request.adapter.begins_at(request.prompt_token_ids) is None:  # nothing invokes it
                request = dataclasses.replace(request, adapter=None)
            elif not self.adapters.hold(request):
                self.adapters.wait_for(request, matcher)
                self._count(request)
                self.arrives(request.request_id, "load")
                return
        try:
            self._add(request, matcher)
        except BaseException:
            self.adapters.release(request.request_id)
            raise
        self._count(request)

    def _add(self, request: Request, matcher: LLMatcher | None, waited: float = 0.0) -> None:
        rules = self._rules(request, matcher) if is_constrained(request.params) else None
        beams = self._beams(request) if request.params.beams is not None else None
        self.scheduler.add(request, rules, beams, waited)
        if request.alone:
            self.isolation.suspect(request.request_id)

    def _count(self, request: Request) -> None:
        """From now on `state` has it."""
        if request.placement is not None:
            self.tickets.append(request.placement.ticket)

    def _rules(self, request: Request, matcher: LLMatcher | None) -> RequestRules:
        self.scheduler.check(request)
        params = request.params
        if params.grammar is not None and matcher is None:
            matcher = self.compile(params.grammar)
        return RequestRules.of(params, self.compiler, matcher, self._ends(params), self.limits.vocab_size)

    def _ends(self, params: SamplingParams) -> frozenset[int]:
        return (frozenset() if params.ignore_eos else self.limits.end_token_ids).union(params.stop_token_ids)

    def _beams(self, request: Request) -> Beams:
        return Beams(request, self._ends(request.params), self._tokenizer)

    def arrives(self, request_id: str, kind: DecisionKind) -> None:
        """Note what happens to a request before it queues; another thread may call it."""
        self.arrivals.add(Decision(0, self.clock(), request_id, ANY, kind, kind, {}))

    def courses(self, request_id: str) -> dict[int, ShardCourse]:
        """Where the time of one of the last thousands of requests went; another thread may call it."""
        return courses(self.scheduler.decisions.copy(), self.arrivals.copy(), request_id, self.clock())

    def compile(self, grammar: Grammar) -> LLMatcher:
        """Compile a grammar, or find it; see `Compiler.compile`."""
        if self.compiler is None:
            raise BadRequest(f"{grammar.param} needs a tokenizer, and this engine has none", grammar.param)
        return self.compiler.compile(grammar)

    def abort(self, request_id: str, index: int | None = None) -> list[SequenceUpdate]:
        """End a request or one of its sequences; its blocks are free when this returns."""
        waits = self.adapters.waiting.get(request_id)
        if waits is not None and (index is None or waits.request.params.num_sequences == 1):
            self.adapters.drop(request_id)
            return [SequenceUpdate(request_id, 0, [], finish_reason="abort", time=self.clock())]
        updates = self.scheduler.abort(request_id, index)
        if self.adapters.in_use:
            self._let_go(updates)
        if not self.scheduler.sequences(request_id):
            self.isolation.left(request_id)
        self._forget()
        return updates

    def step(self) -> list[SequenceUpdate]:
        """Advance every scheduled sequence; returns what happened to those that got a token or ended.

        Where the executor takes two steps at once, step N + 1 is launched before the result of step N is waited for:
        updates are those of the previous step, and the first call returns none.

        A request that makes its step raise ends with finish reason "error"; see `isolation`.

        Raises:
            Exception: what a step raised that no request explains; the engine is of no use any more.
        """
        updates = self._let_in() if self.adapters.waiting else []
        if self.isolation.active:
            updates += self._step_apart()
        else:
            updates += self._run(self.scheduler.schedule(), self.executor.max_in_flight)
        if self.adapters.in_use:
            self._let_go(updates)
        return updates

    def _let_in(self) -> list[SequenceUpdate]:
        """Queue those whose adapters have come; what happened to those for whom that failed."""
        if not self.scheduler.has_work and not self._in_flight:
            self.adapters.pause()
        updates: list[SequenceUpdate] = []

        def fail(request: Request, sentence: str) -> None:
            begun = request.emitted or [[]] * request.params.num_sequences
            for index in (index for index, told in enumerate(begun) if told is not None):
                updates.append(SequenceUpdate(request.request_id, index, [], finish_reason="error", time=self.clock()))
                updates[-1].stop_reason = sentence

        for request, matcher, since in self.adapters.arrived(fail):
            try:
                self._add(request, matcher, time.monotonic() - since)
            except OctavoError as error:  # the queue has filled up meanwhile
                self.adapters.release(request.request_id)
                fail(request, str(error))
        return updates

    def _let_go(self, updates: Iterable[SequenceUpdate]) -> None:
        """Give up the adapters of requests that have ended."""
        for update in updates:
            name = update.request_id
            if update.finish_reason is not None and name in self.adapters and not self.scheduler.sequences(name):
                self.adapters.release(name)

    def _run(self, plan: StepPlan, depth: int) -> list[SequenceUpdate]:
        """Launch a step, and commit the first of those in flight once they are `depth`."""
        for update in plan.ended:
            if update.finish_reason == "late":  # who is dropped is tried no more
                self.isolation.left(update.request_id)
        works = [plan.work, *(step.plan.work for step in self._in_flight)]
        idle = self.clock() - self._ended
        self.patience = sum(self._patience.seconds(work, idle) for work in works)
        if self.scheduler.fetches is not None:
            self._save(plan, self.scheduler.fetches)
        if plan.entries:
            batch = self._batches.build(plan)
            if may_give_way(plan) and not self.isolation.active:
                batch = dataclasses.replace(batch, gives_way=self.hurry)
            try:
                wait = self.executor.launch(batch)
            except BaseException as error:
                self._raised(plan, plan.reached(advanced=False), error)
                return plan.ended
            self._in_flight.append(_Step(plan, self.scheduler.advance(plan), wait))
            if len(self._in_flight) < depth and not plan.apart:
                return plan.ended
        else:
            self._batches.forget()  # a sequence that was held out may have other blocks in the next step
        updates = plan.ended + self._take_result()
        return updates + self._take_result() if plan.apart else updates

    def _save(self, plan: StepPlan, fetches: Fetches) -> None:
        """Have a slower tier keep what a step is about to write over, and one block more.

        Not what a step computes whose result is not known: it may fail.
        """
        in_flight = {block for step in self._in_flight for block in step.plan.published}
        if plan.evicted:
            filling = in_flight.union(plan.filling)
            fetches.save([each for each in plan.evicted if each[0] not in filling])
        fetches.save_one(in_flight.union(plan.published))

    def _take_result(self) -> list[SequenceUpdate]:
        """Commit the first step in flight, if there is one."""
        if not self._in_flight:
            return []
        step = self._in_flight.popleft()
        try:
            result = step.wait()
        except GaveWay:
            self._ended = self.clock()
            self.scheduler.give_back(step.plan, step.books)
            self._batches.forget()
            return []
        except BaseException as error:
            self._raised(step.plan, step.plan.reached(advanced=True), error)
            return []
        self._ended = self.clock()
        self._patience.observe(step.plan.work, result.seconds)
        updates = self.scheduler.commit(step.books, result)
        begin_masks(seq for _, seq in step.books.rows)
        self._steps += 1
        self.generation_tokens += sum(len(update.token_ids) for update in updates)
        self._forget()
        return updates

    # ---- a step that raises -----------------------------------------------------------------------------------

    def _raised(self, plan: StepPlan, reached: dict[str, dict[int, int]], error: BaseException) -> None:
        """Undo what is in flight, and have those who were in the step run apart until the guilty are found.

        Raises:
            BaseException: the error, where trials would not help: a rank is gone, somebody interrupts.
        """
        steps, self._in_flight = self._in_flight, deque()
        if isinstance(error, Exception) and not isinstance(error, EngineDead):
            for step in steps:
                with suppress(Exception):
                    step.wait()
        self.scheduler.roll_back([plan, *(step.plan for step in steps)])
        self._batches.forget()
        if isinstance(error, EngineDead) or not isinstance(error, Exception):
            raise error
        self.executor.check_health()
        newcomers = [name for name in reached if not self.scheduler.sequences(name)[0].group.announced]
        self._reached = reached
        if not reached:  # all of them were aborted meanwhile
            self._run_control()
            return
        logger.warning("a step of %d requests raised %r", len(reached), error)
        if len(reached) == 1:
            self._errors.update(dict.fromkeys(reached, error))
        self.isolation.raised(list(reached), newcomers)

    def _step_apart(self) -> list[SequenceUpdate]:
        """A step while somebody is suspected; see `isolation`."""
        isolation = self.isolation
        if self._in_flight:  # nothing runs beside a trial
            return self._take_result()
        if isolation.searching and not isolation.members:
            return self._conclude()
        if (suspect := isolation.begin()) is not None:
            sequences = self.scheduler.sequences(suspect)
            self._reached = {suspect: {seq.index: seq.num_known + TRIAL_TOKENS - 1 for seq in sequences}}
            return [self._notice(suspect)]
        if isolation.members:
            return self._try()
        isolation.take_turns(self.scheduler.running_requests())
        updates = self._run(self.scheduler.schedule(isolation.may_run), 1)
        isolation.everybody_ran(self._steps)
        return updates

    def _notice(self, request_id: str) -> SequenceUpdate:
        """Say that a suspect begins to run alone, or that this is over."""
        return SequenceUpdate(request_id, self.scheduler.sequences(request_id)[0].index, [], time=self.clock())

    def _try(self) -> list[SequenceUpdate]:
        """A step of a trial."""
        isolation, members = self.isolation, list(self.isolation.members)
        plan = self.scheduler.schedule(isolation.may_run)
        while not plan.entries and not plan.ended:  # others have all places or blocks
            assert self.scheduler.preempt_last(needed_by=members[0]), "nobody runs, and none of the trial can"
            plan = self.scheduler.schedule(isolation.may_run)
        updates = self._run(plan, 1)
        late = {update.request_id for update in plan.ended if update.finish_reason == "late"}
        for request_id in (each for each in members if each not in late and self._has_passed(each)):
            isolation.passed(request_id)
            if not isolation.searching and self.scheduler.sequences(request_id):
                updates.append(self._notice(request_id))
        return updates

    def _has_passed(self, request_id: str) -> bool:
        """Whether a request has done what it was tried for.

        All of its sequences that were in the step which raised have to. Of a suspect's, those that find a place.
        """
        sequences = self.scheduler.sequences(request_id)
        running = [seq for seq in sequences if seq.table.blocks]
        tried = sequences if self.isolation.searching or self.scheduler.num_places() else running
        reached = self._reached.get(request_id, {})
        there = all(seq.num_computed >= reached.get(seq.index, 0) for seq in tried)
        return not sequences or (bool(running) and there)

    def _conclude(self) -> list[SequenceUpdate]:
        """End those who raised alone, if the model still computes."""
        guilty, errors = self.isolation.conclude(self._steps), self._errors
        guilty = [name for name in guilty if self.scheduler.sequences(name)]  # a trial may have been its last step
        self._errors = {}
        if guilty:
            self._run_control()
        updates = []
        for request_id in guilty:
            logger.error(
                "%s: its step raises without any other request in it",
                request_id,
                exc_info=errors[request_id],
                extra={"request_id": request_id},
            )
            kind = type(errors[request_id]).__name__
            sentence = f"the model cannot run this request: its step raised {kind}; the server's log says more"
            updates += self._fail(request_id, sentence)
        self._forget()
        return updates

    def _run_control(self) -> None:
        """A step of nobody; raises what it raises. An executor that fails here fails whoever asks it."""
        self.scheduler.lend(self._compute_in)

    def _compute_in(self, block: int) -> None:
        self.executor.launch(smallest_batch(block, self.pool.groups.count))()

    def _fail(self, request_id: str, sentence: str) -> list[SequenceUpdate]:
        """End a request with an error that says why: all of its sequences, also those that are not made yet."""
        group = self.scheduler.sequences(request_id)[0].group
        unmade = range(group.num_made, group.num_starting)
        updates = self.scheduler.abort(request_id, why="error")
        updates += [SequenceUpdate(request_id, index, [], finish_reason="error") for index in unmade]
        for update in updates:
            update.stop_reason = sentence
        return updates

    def _forget(self) -> None:
        if not self.has_work:
            self._batches.forget()

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_work or bool(self._in_flight) or bool(self.adapters.waiting)

    def state(self) -> ShardState:
        """How busy the engine is, those that wait for adapters among its queue; another thread may call it."""
        waiting = [each.request for each in list(self.adapters.waiting.values())]
        prompts = [len(request.prompt_token_ids) for request in waiting if request.priority < BELOW_ALL]
        positions = sum(attended(0, tokens) for tokens in prompts)
        state = self.scheduler.state().with_request(len(prompts), sum(prompts), positions)
        fetches = self.scheduler.fetches
        if fetches is None:
            return state
        block, start = fetches.peer_seconds
        return dataclasses.replace(state, fetched_block=block, fetched_start=start)

    def stats(self) -> EngineStats:
        """Gauges and counters, now."""
        scheduler = self.scheduler
        return EngineStats(
            state=self.state(),
            counters=scheduler.counters.copy(),
            blocks_cached=self.pool.num_cached,
            filled_slots=scheduler.num_filled_slots(),
            generation_tokens=self.generation_tokens,
            steps=self._steps,
            adapters=self.adapters.stats(),
            tier=TierCounters() if scheduler.fetches is None else scheduler.fetches.stats(),
            states=self._states(),
            peers=TierCounters() if scheduler.fetches is None else scheduler.fetches.peer_stats(),
            given=self.given,
        )

    def _states(self) -> StateStats:
        if (room := self.executor.states) is None or (states := self.pool.states) is None:
            return NO_STATES
        return StateStats(room.count, states.num_free, states.num_cached, room.num_bytes)

    # ---- blocks for other shards, and from them ---------------------------------------------------------------

    def share(self, peers: Peers) -> None:
        """Fetch blocks from other shards from now on, where routers say who has them."""
        scheduler, kv = self.scheduler, self.executor.kv
        assert kv is not None, "a cache that can be copied"
        if scheduler.fetches is None:
            scheduler.fetches = Fetches(None, kv, self.pool, scheduler.cost_model)
        scheduler.fetches.peers = peers

    def warm(self, name: str, hashes: Sequence[bytes]) -> None:
        """Fetch blocks from another shard for whoever asks next; see `Fetches.warm`."""
        if self.scheduler.fetches is not None:
            self.scheduler.fetches.warm(name, hashes)

    def bring(self, name: str, hashes: Sequence[bytes]) -> None:
        """Fetch blocks from another shard for a request that is about to come; see `Fetches.bring`."""
        if self.scheduler.fetches is not None:
            self.scheduler.fetches.bring(name, hashes)

    def copy_blocks(self, hashes: Iterable[bytes]) -> Callable[[], Bytes]:
        """Copy the first of these blocks, as far as the cache has them and their content is certain.

        Returns:
            waits for the copy, a block a row; any thread may call it.
        """
        assert self.executor.kv is not None
        unsure = {block for step in self._in_flight for block in step.plan.published}.union(self.scheduler.filling)
        blocks: list[int] = []
        for block_hash in hashes:
            if (block := self.pool.find(block_hash)) is None or block in unsure:
                break
            blocks.append(block)
        self.given += len(blocks)
        return self.executor.kv.read(blocks)

    @property
    def has_chores(self) -> bool:
        """Whether `do_chores` has anything to do, where nothing else is left to do."""
        return self.scheduler.fetches is not None and self.scheduler.fetches.unsaved

    def do_chores(self) -> None:
        """Write blocks into a slower tier, for some milliseconds."""
        if self.scheduler.fetches is not None:
            self.scheduler.fetches.save_idle()

    def check_integrity(self) -> None:
        """Prove that no block leaked; called whenever the engine idles."""
        self.scheduler.check_integrity()

    def close(self, *, keeps: bool = True) -> None:
        """Give up the model.

        Args:
            keeps: what the cache holds is kept where it outlives the engine.
        """
        self.adapters.close()
        self.scheduler.close()
        if self.scheduler.fetches is not None:
            self.scheduler.fetches.close(certain=keeps and not self._in_flight)
        self.executor.close()
        self._in_flight.clear()


def encoder_config(config: EngineConfig, positions: int, pooling: PoolingInfo, max_in_flight: int) -> EngineConfig:
    """An encoder's settings: tokens alone bound a step, and each prompt has one block, which holds nothing.

    Args:
        positions: tokens of a prompt at most; its makers may say fewer.
        max_in_flight: steps whose prompts hold their places.
    """
    if (wanted := config.max_model_len or min(positions, pooling.max_tokens or positions)) > positions:
        raise ConfigError(f"max_model_len is {wanted}, but this model holds {positions} tokens: lower max_model_len")
    return dataclasses.replace(
        config,
        max_model_len=wanted,
        max_num_seqs=max_in_flight * config.max_num_batched_tokens,
        block_size=wanted,
        enable_prefix_caching=False,
    )


def recurrent_config(config: EngineConfig, states: int) -> EngineConfig:
    """The settings of a model with recurrent layers: a sequence may need two states in one step.

    Raises:
        ConfigError: what cannot be done with states.
    """
    if config.speculation:
        raise ConfigError(
            "speculation is not for models with recurrent layers, which cannot give tokens back: leave it off"
        )
    if config.record is not None:
        raise ConfigError("record is not for models with recurrent layers, whose states no frame holds: leave it off")
    if config.max_num_seqs > (most := states // 2):
        logger.warning(
            "kv_cache_bytes holds %d states of recurrent layers: max_num_seqs is %d and not %d",
            states,
            most,
            config.max_num_seqs,
        )
    return dataclasses.replace(config, max_num_seqs=min(config.max_num_seqs, most), speculation=False)


def _recorded() -> Callable[..., Scheduler]:
    from octavo.engine.recorded import recorded  # next to nobody needs it

    return recorded


def _speculates(config: EngineConfig, executor: Executor) -> bool:
    """Whether tokens are guessed: those of a rehearsal say nothing of a model's."""
    if config.rehearsal is not None or executor.spec.encoder is not None:
        return False
    unseen = executor.batch_invariant and executor.max_in_flight == 1  # no bit of a token's logits changes
    return unseen if config.speculation is None else bool(config.speculation)


def _max_model_len(config: EngineConfig, of_model: int, held: int) -> int:
    """The context limit: the model's, the setting's, and never more than what the KV pool holds of a sequence."""
    wanted = config.max_model_len
    if wanted is None:
        return min(of_model, held)
    if wanted > held:
        raise ConfigError(
            f"max_model_len is {wanted}, but the KV cache holds {held} tokens: "
            "raise kv_cache_bytes or lower max_model_len"
        )
    return wanted
