"""Steps of another executor in a thread, so that the next is planned and laid out while one runs.

A step's tokens are then not known yet where the next one is laid out: `StepBatch.sources` says which are missing, and
the thread, which runs one step after the other, fills them in.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from octavo.execution.executor import Executor, LocalExecutor, Shape, Wait
from octavo.execution.kv_blocks import BehindSteps
from octavo.request import Adapter
from octavo.step import Int64, Penalties, StepBatch, StepResult


class BackgroundExecutor:
    """Two steps in flight, for an executor whose `launch` returns when the step has ended.

    Args:
        executor: runs steps whose tokens are all known.
    """

    max_in_flight: int = 2

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.num_blocks, self.groups = executor.num_blocks, executor.groups
        self.batch_invariant, self.states = executor.batch_invariant, executor.states
        self._thread = ThreadPoolExecutor(1, "octavo-steps")
        self.kv = None if executor.kv is None else BehindSteps(executor.kv, self._thread)
        self._drawn: Int64 = np.zeros(0, np.int64)  # by the step that ran last

    @property
    def spec(self) -> Shape:
        """As in `Executor`."""
        return self.executor.spec

    @property
    def local(self) -> LocalExecutor | None:
        """As in `Executor`."""
        return self.executor.local

    def __str__(self) -> str:
        return str(self.executor)

    def launch(self, batch: StepBatch) -> Wait:
        """As in `Executor`."""
        kept = dataclasses.replace(batch, block_tables=batch.block_tables.copy())  # the next batch changes it in place
        return self._thread.submit(self._run, kept).result

    def load_adapter(self, adapter: Adapter) -> int:
        """As in `Executor`."""
        return self.executor.load_adapter(adapter)

    def drop_adapter(self, digest: str) -> None:
        """As in `Executor`: after the steps that were launched."""
        self._thread.submit(self.executor.drop_adapter, digest)

    def check_health(self) -> None:
        """As in `Executor`."""
        self.executor.check_health()

    def close(self) -> None:
        """Close the executor, which ends a step that hangs (on a rank that is gone, say), and then the thread."""
        self.kv = None  # which has the cache's memory
        self.executor.close()
        self._thread.shutdown()

    def _run(self, batch: StepBatch) -> StepResult:
        result = self.executor.launch(with_tokens(batch, self._drawn))()
        self._drawn = result.token_ids
        return result


def with_tokens(batch: StepBatch, drawn: Int64) -> StepBatch:
    """A batch with the missing tokens filled in from those that the step before drew, [R].

    A row that failed (-1) goes on with token 0; nobody will look at what comes of it.
    """
    if batch.sources is None:
        return batch
    missing = batch.sources >= 0
    tokens = batch.token_ids.copy()
    tokens[missing] = np.maximum(drawn[batch.sources[missing]], 0)
    sampling, penalties = batch.sampling, dict(batch.sampling.penalties)
    for row, counted in batch.sampling.penalties.items():
        place = sampling.token_index[row]
        if missing[place]:
            penalties[row] = _with_token(counted, tokens[place])
    return dataclasses.replace(
        batch, token_ids=tokens, sources=None, sampling=dataclasses.replace(sampling, penalties=penalties)
    )


def _with_token(penalties: Penalties, token: np.int32) -> Penalties:
    """With one more token of the output."""
    found = np.flatnonzero(penalties.tokens == token)
    if len(found):
        counts = penalties.counts.copy()
        counts[found] += 1
        return dataclasses.replace(penalties, counts=counts)
    tokens, counts = np.append(penalties.tokens, np.int64(token)), np.append(penalties.counts, np.float32(1))
    return dataclasses.replace(penalties, tokens=tokens, counts=counts)
