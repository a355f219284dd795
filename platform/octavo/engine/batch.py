"""`StepPlan` -> `StepBatch`: the scheduler's decision as the arrays an executor needs."""

from __future__ import annotations

import dataclasses

import numpy as np

from octavo.engine.activation import adapter_of
from octavo.engine.behind import Behind, add_masks
from octavo.engine.masks import banned, fill_masks
from octavo.engine.plan import StepPlan, num_prompt_logprobs
from octavo.engine.sequence import Sequence
from octavo.engine.token_counts import TokenCounts
from octavo.kvcache.block_table import fill_in, lay_out
from octavo.step import Int32, Penalties, PooledRow, SamplingRows, SoFar, StateRows, StepBatch, Uint32

_SPARE_BLOCKS = 8  # columns of a kept block table that its sequences can grow into


class BatchBuilder:
    """Lays plans out as batches; while the same sequences decode, only what changed is touched.

    Then that is a token, a position and now and then a block for each. A batch's arrays are good until the next one.
    """

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []  # of the last batch, if each decoded one token there
        self._num_blocks: list[int] = []
        self._batch: StepBatch | None = None

    def build(self, plan: StepPlan) -> StepBatch:
        """The batch of a plan; see `octavo.step` for the picture."""
        sequences = [seq for seq, _ in plan.entries]
        again = self._batch is not None and sequences == self._sequences and plan.num_tokens == len(sequences)
        again = again and not plan.work.has_prompts  # a sequence may compute one of several forced tokens
        batch = (self._next(plan) if again else None) or build_batch(plan)
        decoding = batch.num_tokens == len(batch.sampling.token_index) == len(sequences)
        self._sequences = sequences if decoding else []
        self._num_blocks = [len(seq.table.blocks) for seq in sequences]
        self._batch = batch
        return batch

    def forget(self) -> None:
        """Let go of the last batch, whose sequences hold their requests, prompts and all."""
        self._sequences, self._num_blocks, self._batch = [], [], None

    def _next(self, plan: StepPlan) -> StepBatch | None:
        """The last batch one token later; None where its block tables are too narrow."""
        last, sequences = self._batch, self._sequences
        assert last is not None
        for row, seq in enumerate(sequences):
            blocks = seq.table.blocks
            if len(blocks) != self._num_blocks[row] or plan.copies:
                if len(blocks) > last.block_tables.shape[-1]:
                    return None
                fill_in(last.block_tables, row, seq.table)
        known = np.array([seq.num_known for seq in sequences], np.int64)
        rows = dataclasses.replace(
            last.sampling,
            position=known,
            penalties={},
            logit_bias={},
            banned={},
            named={},
            masks=None,
            masked=None,
            beams={},
        )
        constrained = []
        for row, seq in enumerate(sequences):
            if seq.group.has_extras:
                _add_extras(rows, row, seq, seq.counts)
                if seq.constraint is not None:
                    constrained.append((row, seq))
        if constrained:
            fill_masks(rows, constrained)
        return dataclasses.replace(
            last,
            token_ids=np.array([0 if seq.num_pending else seq.token_ids[-1] for seq in sequences], np.int32),
            sources=_sources(sequences, np.arange(len(sequences)), len(sequences)),
            context_lens=known.astype(np.int32),
            block_copies=plan.copies,
            sampling=rows,
            states=_state_rows(plan, last.query_start),
        )


def build_batch(plan: StepPlan) -> StepBatch:
    """Lay a plan out as one flat batch."""
    entries = plan.entries
    counts = [count for _, count in entries]
    query_start = np.zeros(len(entries) + 1, np.int32)
    np.cumsum(counts, out=query_start[1:])
    tokens: list[int] = []
    for seq, count in entries:
        known = seq.token_ids[seq.num_computed : seq.num_computed + count]
        # what is not known is proposed, or a single token that the step before samples
        tokens += known if len(known) == count else [*known, *plan.proposed.get(seq, (0,))]
    return StepBatch(
        token_ids=np.array(tokens, np.int32),
        sources=_sources([seq for seq, _ in entries], query_start[1:] - 1, len(tokens)),
        query_start=query_start,
        context_lens=np.array([seq.num_computed + count for seq, count in entries], np.int32),
        block_tables=lay_out([seq.table for seq, _ in entries], _SPARE_BLOCKS),
        block_copies=plan.copies,
        sampling=_sampling_rows(plan, query_start),
        prompt_logprobs=_prompt_logprobs(plan, query_start),
        states=_state_rows(plan, query_start),
        adapters=_adapters([seq for seq, _ in entries]),
        pooled=[_pooled_row(row, *entry) for row, entry in enumerate(entries) if entry[0].group.method is not None],
    )


def smallest_batch(block: int, groups: int = 1) -> StepBatch:
    """One token of no request, stored in a block that nobody holds, which all groups of layers take in turn."""
    one = np.ones(1, np.int32)
    rows = SamplingRows(
        token_index=one * 0,
        temperature=np.zeros(1, np.float32),
        top_k=one * 0,
        top_p=np.ones(1, np.float32),
        min_p=np.zeros(1, np.float32),
        seed=np.zeros(1, np.uint64),
        position=np.ones(1, np.int64),
        num_logprobs=-one,
    )
    tables = np.full((groups, 1, 1) if groups > 1 else (1, 1), block, np.int32)
    return StepBatch(one * 0, np.array([0, 1], np.int32), one, tables, [], rows)


def _adapters(sequences: list[Sequence]) -> list[str] | None:
    """`StepBatch.adapters`."""
    digests = [adapter_of(seq) for seq in sequences]
    return digests if any(digests) else None


def _state_rows(plan: StepPlan, query_start: np.ndarray) -> StateRows | None:
    """`StepBatch.states`."""
    if not plan.states:
        return None
    saves = [
        (start + tokens - 1 - seq.num_computed, state)
        for start, (seq, _), step in zip(query_start.tolist(), plan.entries, plan.states, strict=False)
        for tokens, state in step.saves
    ]
    saved, states = np.array(saves, np.int32).T
    return StateRows(np.array([step.source for step in plan.states], np.int32), saved, states)


def _sources(sequences: list[Sequence], last: np.ndarray, num_tokens: int) -> Int32 | None:
    """`StepBatch.sources`; `last` has the flat index of each sequence's last token."""
    rows = np.array([seq.row if seq.num_pending else -1 for seq in sequences], np.int32)
    if (rows < 0).all():
        return None
    sources = np.full(num_tokens, -1, np.int32)
    sources[last] = rows
    return sources


def _sampling_rows(plan: StepPlan, query_start: np.ndarray) -> SamplingRows:
    """One row per sampled token: n of a prompt that becomes n sequences, k + 1 where k tokens are proposed."""
    rows_of = _rows_with_proposals if plan.proposed else _rows
    laid_out = rows_of(plan, query_start.tolist())
    columns = np.array([seq.group.columns for _, seq, _, _ in laid_out], np.float64).reshape(-1, 5).T
    rows = SamplingRows(
        token_index=np.array([place for place, _, _, _ in laid_out], np.int32),
        temperature=columns[0].astype(np.float32),
        top_k=columns[1].astype(np.int32),
        top_p=columns[2].astype(np.float32),
        min_p=columns[3].astype(np.float32),
        seed=np.array([seq.group.seed_of(index) for _, seq, index, _ in laid_out], np.uint64),
        position=np.array([seq.num_known + ahead for _, seq, _, ahead in laid_out], np.int64),
        num_logprobs=columns[4].astype(np.int32),
    )
    counts, constrained, behind = None, list[tuple[int, Sequence]](), list[tuple[int, Uint32]]()
    for row, (_, seq, _, ahead) in enumerate(laid_out):
        if seq.group.has_extras:
            counts = seq.counts if not ahead else _with_proposed(counts, plan.proposed[seq][ahead - 1], ahead)
            if seq.constraint is None or not ahead:
                _add_extras(rows, row, seq, counts, ahead)
            else:
                _add_extras(rows, row, seq, counts, ahead, keeps := plan.behind[seq][ahead - 1])
                behind += [] if keeps.mask is None else [(row, keeps.mask)]
            if seq.constraint is not None and not ahead:
                constrained.append((row, seq))
    if constrained:
        fill_masks(rows, constrained)
    if behind:
        add_masks(rows, behind)
    return rows


def _rows(plan: StepPlan, starts: list[int]) -> list[tuple[int, Sequence, int, int]]:
    """(flat token, sequence, index of the sequence whose token it is, proposed tokens before that) of each row."""
    return [
        (starts[i + 1] - 1, seq, index, 0)
        for i, seq in plan.sampled()
        for index in range(seq.index, seq.index + seq.width)
    ]


def _rows_with_proposals(plan: StepPlan, starts: list[int]) -> list[tuple[int, Sequence, int, int]]:
    """As `_rows`."""
    return [
        (starts[i + 1] - 1 - proposed + ahead, seq, index, ahead)
        for i, seq in plan.sampled()
        for index in range(seq.index, seq.index + seq.width)
        for proposed in [len(plan.proposed.get(seq, ()))]
        for ahead in range(proposed + 1)
    ]


def _with_proposed(counts: TokenCounts | None, token: int, ahead: int) -> TokenCounts | None:
    """Counts with one more token, in a copy that the sequence's rows share; a row keeps what it was given."""
    if counts is None:
        return None
    counts = counts.copy() if ahead == 1 else counts
    counts.add(token)
    return counts


def _add_extras(
    rows: SamplingRows,
    row: int,
    seq: Sequence,
    counts: TokenCounts | None,
    ahead: int = 0,
    behind: Behind | None = None,
) -> None:
    """What a row has beside its columns.

    Args:
        counts: of tokens, those proposed before it included.
        ahead: proposed tokens before it.
        behind: what it keeps to after them, where the sequence keeps to something.
    """
    group = seq.group
    if group.beams is not None:
        rows.beams[row] = group.beams.num_candidates
    if group.named is not None:
        rows.named[row] = group.named
    if group.penalties is not None and counts is not None:
        rows.penalties[row] = Penalties(*group.penalties, *counts.now())
    if group.bias is not None:
        rows.logit_bias[row] = group.bias
    if seq.constraint is None:
        bans = None
    elif seq.constraint.needs_mask if behind is None else behind.mask is not None:
        return  # its mask bans
    else:
        bans = banned(seq) if behind is None else behind.banned
    if group.banned is not None and seq.num_known + ahead - seq.num_prompt < group.request.params.min_tokens:
        bans = group.banned if bans is None else np.union1d(bans, group.banned)
    if bans is not None and len(bans):
        rows.banned[row] = bans


def _pooled_row(row: int, seq: Sequence, count: int) -> PooledRow:
    pooling, method = seq.group.request.pooling, seq.group.method
    assert pooling is not None
    assert method is not None
    seq.so_far = seq.so_far or SoFar()
    is_last = count >= seq.remaining
    return PooledRow(row, seq.num_computed, is_last, pooling.task, method, pooling.second, seq.so_far)


def _prompt_logprobs(plan: StepPlan, query_start: np.ndarray) -> list[tuple[int, int, int]]:
    wanted: list[tuple[int, int, int]] = []
    for (seq, count), start in zip(plan.entries, query_start[:-1].tolist(), strict=True):
        k = seq.group.request.params.prompt_logprobs
        asked = range(num_prompt_logprobs(seq, count))
        wanted += [(start + j, seq.token_ids[seq.num_computed + j + 1], k or 0) for j in asked]
        if seq.untold is not None:
            k = max(0, seq.group.columns[4])
            forced = seq.untold.wanted(seq.num_computed, count)
            wanted += [(start + index - 1 - seq.num_computed, seq.token_ids[index], k) for index in forced]
    return wanted
