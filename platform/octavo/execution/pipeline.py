"""Steps begun before the one before has ended: the next is planned and prepared while the device computes.

A step's tokens are then not known yet where the next one is laid out: `StepBatch.sources` says which are missing, and
whoever runs the steps, one after the other, fills them in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from octavo.step import Int64, Penalties, StepBatch, StepResult

Wait = Callable[[], StepResult]
"""Waits for a step and returns its result; raises what the step raised."""


class Pipeline(Protocol):
    """Runs steps in the order in which they are begun."""

    def launch(self, batch: StepBatch) -> Wait:
        """Begin a step; the batch's arrays may change once this returns."""
        ...


class Worker:
    """A `Pipeline` of one thread, for an executor that returns when its step is done.

    Args:
        execute: runs a step whose tokens are all known.
    """

    def __init__(self, execute: Callable[[StepBatch], StepResult]) -> None:
        self._execute = execute
        self._thread = ThreadPoolExecutor(1, "octavo-steps")
        self._drawn: Int64 = np.zeros(0, np.int64)  # by the step that ran last

    def launch(self, batch: StepBatch) -> Wait:
        """As in `Pipeline`."""
        kept = dataclasses.replace(batch, block_tables=batch.block_tables.copy())  # the next batch changes it in place
        return self._thread.submit(self._run, kept).result

    def close(self) -> None:
        """Wait for the steps that were begun and end the thread."""
        self._thread.shutdown()

    def _run(self, batch: StepBatch) -> StepResult:
        result = self._execute(with_tokens(batch, self._drawn))
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
