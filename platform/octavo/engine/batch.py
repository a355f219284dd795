"""Plan -> `StepBatch`: the scheduler's decision as the arrays an executor needs."""

from __future__ import annotations

import numpy as np

from octavo.engine.scheduler import Plan, num_prompt_logprobs
from octavo.engine.sequence import Sequence
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
    lines = [(i, seq, index) for i, seq in plan.sampled() for index in range(seq.index, seq.index + seq.width)]
    columns = np.array([seq.group.columns for _, seq, _ in lines], np.float64).reshape(-1, 5).T
    rows = SamplingRows(
        token_index=query_start[[i + 1 for i, _, _ in lines]] - 1,
        temperature=columns[0].astype(np.float32),
        top_k=columns[1].astype(np.int32),
        top_p=columns[2].astype(np.float32),
        min_p=columns[3].astype(np.float32),
        seed=np.array([seq.group.seed_of(index) for _, seq, index in lines], np.uint64),
        position=np.array([seq.num_known for _, seq, _ in lines], np.int64),
        num_logprobs=columns[4].astype(np.int32),
    )
    for row, (_, seq, _) in enumerate(lines):
        if seq.group.has_extras:
            _add_extras(rows, row, seq)
    return rows


def _add_extras(rows: SamplingRows, row: int, seq: Sequence) -> None:
    params = seq.group.request.params
    if params.has_penalties:
        penalties = params.presence_penalty, params.frequency_penalty, params.repetition_penalty
        rows.penalties[row] = (*penalties, seq.token_ids[: seq.num_prompt], seq.token_ids[seq.num_prompt :])
    if params.logit_bias:
        rows.logit_bias[row] = params.logit_bias
    banned = seq.group.end_token_ids | seq.group.stop_token_ids
    if banned and seq.num_output < params.min_tokens:
        rows.banned[row] = sorted(banned)


def _prompt_logprobs(plan: Plan, query_start: np.ndarray) -> list[tuple[int, int, int]]:
    wanted: list[tuple[int, int, int]] = []
    for (seq, count), start in zip(plan.entries, query_start[:-1].tolist(), strict=True):
        k = seq.group.request.params.prompt_logprobs
        asked = range(num_prompt_logprobs(seq, count))
        wanted += [(start + j, seq.token_ids[seq.num_computed + j + 1], k or 0) for j in asked]
    return wanted
