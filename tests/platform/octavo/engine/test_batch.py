"""A kept batch brought up to date is the batch that would be laid out afresh."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from octavo.engine import batch
from octavo.engine.batch import BatchBuilder, build_batch


@pytest.mark.parametrize("num_blocks", [400, 60])  # the smaller pool preempts
def test_a_kept_batch_is_a_fresh_one(fake, monkeypatch, num_blocks):
    engine = fake.engine(num_blocks=num_blocks, max_num_seqs=12)
    builds, fresh = [], [0]

    def count(plan):
        fresh[0] += 1
        return build_batch(plan)

    def build(plan):
        ours = BatchBuilder.build(engine._batches, plan)
        assert_same(ours, build_batch(plan))
        builds.append(ours)
        return ours

    monkeypatch.setattr(batch, "build_batch", count)
    engine._batches.build = build
    params = [{}, {"n": 3}, {"presence_penalty": 1.0, "repetition_penalty": 1.2}, {"logit_bias": {5: 1.0}},
              {"min_tokens": 20, "stop_token_ids": [7]}, {"logprobs": 2}]  # fmt: skip
    for i in range(3 * len(params)):
        kind = params[i % len(params)]
        engine.add(fake.request(f"r{i}", list(range(1, 8 + 3 * i)), seed=i, max_tokens=30 + i, **kind))
    fake.run(engine)
    assert fresh[0] < len(builds) / 2
    assert (engine.stats().counters.preemptions > 0) == (num_blocks == 60)


def assert_same(ours, theirs):
    for field in dataclasses.fields(theirs):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "sampling":
            assert_same(a, b)
        elif field.name == "block_tables":
            assert_same_tables(a, b, theirs.context_lens)
        else:
            assert plain(a) == plain(b)


def plain(value):
    """Arrays as lists beside their types, wherever they are."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


def assert_same_tables(a, b, context_lens):
    for row, length in enumerate(context_lens):
        blocks = -(-int(length) // 4)
        assert a[row, :blocks].tolist() == b[row, :blocks].tolist()
