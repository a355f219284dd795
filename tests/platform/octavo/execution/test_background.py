"""Steps in a thread: tokens that were not known at the launch are filled in from the step before."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np

from octavo.execution.background import BackgroundExecutor, with_tokens
from octavo.execution.executor import finished
from octavo.layer_groups import ONE_GROUP
from octavo.step import Penalties, SamplingRows, StepBatch, StepResult


def batch(token_ids, sources=None, penalties=None):
    rows = len(token_ids)
    floats, ints = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    sampling = SamplingRows(
        np.arange(rows, dtype=np.int32), floats, ints, floats, floats, np.zeros(rows, np.uint64),
        np.zeros(rows, np.int64), ints - 1, penalties=penalties or {},
    )  # fmt: skip
    return StepBatch(
        np.array(token_ids, np.int32),
        np.arange(rows + 1, dtype=np.int32),
        np.ones(rows, np.int32),
        np.zeros((rows, 1), np.int32),
        [],
        sampling,
        sources=None if sources is None else np.array(sources, np.int32),
    )


def counted(tokens, counts):
    return Penalties(0.0, 0.5, 1.0, np.array(tokens, np.int64), np.array(counts, np.float32))


def test_missing_tokens_are_those_of_their_rows():
    whole = with_tokens(batch([7, 0, 0, 0], sources=[-1, 1, 0, 2]), np.array([50, 60, -1]))
    assert whole.token_ids.tolist() == [7, 60, 50, 0]  # a row that failed goes on with 0
    assert whole.sources is None
    known = batch([1, 2])
    assert with_tokens(known, np.array([9])) is known


def test_penalties_count_the_token_that_was_missing():
    penalties = {0: counted([3], [1]), 1: counted([3], [1]), 2: counted([3], [1])}
    given = batch([0, 0, 5], sources=[0, 1, -1], penalties=penalties)
    found = with_tokens(given, np.array([3, 4])).sampling.penalties
    assert (found[0].tokens.tolist(), found[0].counts.tolist()) == ([3], [2])
    assert (found[1].tokens.tolist(), found[1].counts.tolist()) == ([3, 4], [1, 1])
    assert found[2] is penalties[2]
    assert penalties[0].counts.tolist() == [1]  # the batch's own stays as it was


class Adding:
    """Says each token plus one; notes what it was given."""

    max_in_flight, batch_invariant, num_blocks, kv, states, local = 1, True, 3, None, None, None
    groups = ONE_GROUP
    spec: Any = SimpleNamespace(vocab_size=9)

    def __init__(self) -> None:
        self.ran: list[StepBatch] = []
        self.closed = False

    def launch(self, given: StepBatch) -> Any:
        self.ran.append(given)
        return finished(StepResult(given.token_ids.astype(np.int64) + 1, {}, [], 0.0))

    def check_health(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_steps_run_one_after_the_other_over_tables_of_their_own():
    inner = Adding()
    executor = BackgroundExecutor(inner)
    first = batch([10, 20])
    waits = [executor.launch(first)]
    first.block_tables[:] = 99  # the next batch is laid out in the same place
    waits.append(
        executor.launch(dataclasses.replace(first, token_ids=np.zeros(2, np.int32), sources=np.array([1, 0], np.int32)))
    )
    assert [wait().token_ids.tolist() for wait in waits] == [[11, 21], [22, 12]]
    assert inner.ran[0].block_tables.tolist() == [[0], [0]]
    assert (executor.num_blocks, executor.max_in_flight, executor.spec) == (3, 2, inner.spec)
    executor.close()
    assert inner.closed
