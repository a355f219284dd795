"""Plan -> `StepBatch`: the scheduler's decision as the arrays an executor needs."""

from __future__ import annotations

import numpy as np

from octavo.engine.scheduler import Plan, num_prompt_logprobs
from octavo.engine.sequence import Sequence
from octavo.request import SamplingParams
from octavo.step import SamplingRows, StepBatch


def build_batch(plan: Plan) -> StepBatch:
    """Lay a plan out as one flat batch; see `octavo.step` for the picture."""
    entries = plan.entries
    counts = [count for _, count in entries]
    query_start = np.zeros(len(entries) + 1, np.int32)
    np.cumsum(counts, out=query_start[1:])
    tokens: list[int] = []
    for seq, count in entries:
        tokens += seq.token_ids[seq.num_computed : seq.num_computed + count]
    block_tables = np.zeros((len(entries), max(len(seq.table.blocks) for seq, _ in entries)), np.int32)
    for i, (seq, _) in enumerate(entries):
        block_tables[i, : len(seq.table.blocks)] = seq.table.blocks
    return StepBatch(
        token_ids=np.array(tokens, np.int32),
        query_start=query_start,
        context_lens=np.array([seq.num_computed + count for seq, count in entries], np.int32),
        block_tables=block_tables,
        block_copies=plan.copies,
        sampling=_sampling_rows(plan, query_start),
        prompt_logprobs=_prompt_logprobs(plan, query_start),
    )


def _sampling_rows(plan: Plan, query_start: np.ndarray) -> SamplingRows:
    """One row per token to draw; a prompt that becomes n sequences is drawn from n times."""
    lines = [(i, seq, index) for i, seq in plan.sampled() for index in _indices(seq)]
    params = [seq.group.request.params for _, seq, _ in lines]
    rows = SamplingRows(
        token_index=np.array([query_start[i + 1] - 1 for i, _, _ in lines], np.int32),
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array([max(p.top_k, 0) for p in params], np.int32),
        top_p=np.array([p.top_p for p in params], np.float32),
        min_p=np.array([p.min_p for p in params], np.float32),
        seed=np.array([seq.group.seed_of(index) for _, seq, index in lines], np.uint64),
        position=np.array([seq.num_known for _, seq, _ in lines], np.int64),
        num_logprobs=np.array([_num_logprobs(seq) for _, seq, _ in lines], np.int32),
    )
    for row, (p, (_, seq, _)) in enumerate(zip(params, lines, strict=True)):
        _sparse_features(rows, row, p, seq)
    return rows


def _indices(seq: Sequence) -> range:
    return range(seq.index, seq.index + seq.width)


def _num_logprobs(seq: Sequence) -> int:
    asked = seq.group.request.params.logprobs
    return (0 if seq.group.wants_logprobs else -1) if asked is None else asked


def _sparse_features(rows: SamplingRows, row: int, params: SamplingParams, seq: Sequence) -> None:
    penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
    if penalties != (0.0, 0.0, 1.0):
        rows.penalties[row] = (*penalties, seq.token_ids[: seq.num_prompt], seq.token_ids[seq.num_prompt :])
    if params.logit_bias:
        rows.logit_bias[row] = params.logit_bias
    if seq.num_output < params.min_tokens:
        banned = seq.group.end_token_ids | seq.group.stop_token_ids
        if banned:
            rows.banned[row] = sorted(banned)


def _prompt_logprobs(plan: Plan, query_start: np.ndarray) -> list[tuple[int, int, int]]:
    wanted: list[tuple[int, int, int]] = []
    for (seq, count), start in zip(plan.entries, query_start[:-1].tolist(), strict=True):
        k = seq.group.request.params.prompt_logprobs
        asked = range(num_prompt_logprobs(seq, count))
        wanted += [(start + j, seq.token_ids[seq.num_computed + j + 1], k or 0) for j in asked]
    return wanted
