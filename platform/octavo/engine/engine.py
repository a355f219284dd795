"""The engine: schedule -> execute -> commit, in tokens only."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from octavo.config import EngineConfig
from octavo.cost_model import CostModel
from octavo.engine.admission import ModelLimits
from octavo.engine.batch import BatchBuilder
from octavo.engine.patience import LEAST, Patience
from octavo.engine.plan import InFlight
from octavo.engine.scheduler import Scheduler
from octavo.engine.stats import EngineStats
from octavo.errors import ConfigError
from octavo.kvcache.block_pool import BlockPool
from octavo.request import Request, SequenceUpdate
from octavo.source import Source
from octavo.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from octavo.execution.executor import Executor, Wait
    from octavo.execution.ranks import Launch

MAX_TICKETS = 16384
"""Tickets kept for a reporter; a router that misses some counts those requests twice for a few seconds."""


class Engine:
    """One model, one KV pool, one loop; single-threaded (`AsyncEngine` puts it into a thread).

    Args:
        name: of the model; block hashes start from it, so the router must use the same.
        executor: what runs the steps.
        end_token_ids: tokens that end a sequence unless a request says `ignore_eos`; those that the model cannot draw
            do nothing.
        clock: monotonic seconds.

    Attributes:
        patience: seconds that `step` may take now before it counts as stuck; another thread may read it.
        tickets: routers' names of requests that `Scheduler.state` counts; whoever reports the state empties it.
    """

    def __init__(
        self,
        name: str,
        executor: Executor,
        config: EngineConfig,
        end_token_ids: Iterable[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.clock = clock
        self.executor = executor
        self.limits = ModelLimits(
            name,
            executor.spec.vocab_size,
            _max_model_len(config, executor.spec.max_position_embeddings, executor.num_blocks),
            frozenset(token for token in end_token_ids if 0 <= token < executor.spec.vocab_size),
        )
        self.pool = BlockPool(executor.num_blocks, config.block_size, caching=config.enable_prefix_caching)
        self.scheduler = Scheduler(config, self.limits, self.pool, CostModel(), clock)
        self._batches = BatchBuilder()
        self._in_flight: deque[tuple[InFlight, Wait]] = deque()
        self._steps = 0
        self._patience = Patience(self.scheduler.cost_model)
        self.patience = LEAST
        self.generation_tokens = 0
        self.tickets: deque[str] = deque(maxlen=MAX_TICKETS)

    @classmethod
    def load(
        cls,
        source: Source,
        config: EngineConfig,
        tokenizer: Tokenizer,
        *,
        progress: bool = False,
        launch: Launch | None = None,
    ) -> Engine:
        """Load a model into this process, or what stands for it in a rehearsal.

        Args:
            launch: starts the other tensor-parallel ranks; None makes them children of this process.

        Raises:
            ModelError, ConfigError: it cannot be loaded, or not with these settings.
        """
        executor: Executor
        if config.rehearsal is not None:  # it needs no model's code
            from octavo.rehearsal.simulated import SimulatedExecutor

            executor = SimulatedExecutor.load(config, tokenizer)
        else:
            from octavo.execution.load import load_executor

            executor = load_executor(source, config, progress=progress, launch=launch)
        return cls(source.name, executor, config, tokenizer.eos_token_ids)

    def add(self, request: Request) -> None:
        """Queue a request; see `Scheduler.add`."""
        self.scheduler.add(request)
        if request.placement is not None:
            self.tickets.append(request.placement.ticket)

    def abort(self, request_id: str, index: int | None = None) -> list[SequenceUpdate]:
        """End a request or one of its sequences; its blocks are free when this returns."""
        updates = self.scheduler.abort(request_id, index)
        self._forget()
        return updates

    def step(self) -> list[SequenceUpdate]:
        """Advance every scheduled sequence; returns what happened to those that got a token or ended.

        Where the executor takes two steps at once, step N + 1 is launched before the result of step N is waited for:
        updates are those of the previous step, and the first call returns none.
        """
        plan = self.scheduler.schedule()
        works = [plan.work, *(step.work for step, _ in self._in_flight)]
        self.patience = sum(map(self._patience.seconds, works))
        published = [plan.published, *(step.published for step, _ in self._in_flight)]
        try:
            if plan.entries:
                wait = self.executor.launch(self._batches.build(plan))
                self._in_flight.append((self.scheduler.advance(plan), wait))
                if len(self._in_flight) < self.executor.max_in_flight:
                    return plan.ended
            if not self._in_flight:
                return plan.ended
            step, wait = self._in_flight.popleft()
            result = wait()
        except BaseException:
            for blocks in published:  # which were perhaps never filled
                self.pool.unpublish(blocks)
            raise
        self._patience.observe(step.work.tokens, result.seconds)
        updates = plan.ended + self.scheduler.commit(step, result)
        self._steps += 1
        self.generation_tokens += sum(len(update.token_ids) for update in updates)
        self._forget()
        return updates

    def _forget(self) -> None:
        if not self.has_work:
            self._batches.forget()

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_work or bool(self._in_flight)

    def stats(self) -> EngineStats:
        """Gauges and counters, now."""
        scheduler = self.scheduler
        return EngineStats(
            state=scheduler.state(),
            counters=dataclasses.replace(scheduler.counters),
            blocks_cached=self.pool.num_cached,
            filled_slots=scheduler.num_filled_slots(),
            generation_tokens=self.generation_tokens,
            steps=self._steps,
        )

    def check_integrity(self) -> None:
        """Prove that no block leaked; called whenever the engine idles."""
        self.scheduler.check_integrity()

    def close(self) -> None:
        """Give up the model."""
        self.executor.close()
        self._in_flight.clear()


def _max_model_len(config: EngineConfig, of_model: int, num_blocks: int) -> int:
    """The context limit: the model's, the setting's, and never more than the KV pool holds."""
    slots = num_blocks * config.block_size
    wanted = config.max_model_len
    if wanted is None:
        return min(of_model, slots)
    if wanted > slots:
        raise ConfigError(
            f"max_model_len is {wanted}, but the KV cache holds {slots} tokens: "
            "raise kv_cache_bytes or lower max_model_len"
        )
    return wanted
