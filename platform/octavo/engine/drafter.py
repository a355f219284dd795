"""A draft model: a small model that says how sequences may go on, and the keys and values it has of each of them.

    known to the engine  | a a a a a a a a a a a |
    computed here        | c c c c c c | lag ... |             before: what was guessed rightly counts
                         | c c c c c c c c c c c | g0 g1 .. |  after k passes: all but the last guess

The first pass computes the lag, and each one draws a guess of every sequence that wants one more, for the random
number with which the engine's own model will draw that token: where the two models agree about the odds, they agree
about the token. Nothing that is drawn here is told to anybody before the engine's model has drawn the same.

Its blocks are found by the hashes that the engine's are, so prompts that begin alike are computed once.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING

import numpy as np

from octavo.config import EngineConfig
from octavo.cost_model import CostModel, StepWork, attended
from octavo.engine.sequence import Sequence
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable, lay_out
from octavo.source import Source, resolve_source
from octavo.step import SamplingRows, StepBatch
from octavo.text.tokenizer import Tokenizer, check_draft

if TYPE_CHECKING:
    from octavo.execution.executor import Executor

_MEASURED = (
    (1, 1, 0), (1, 1, 500), (1, 32, 0), (4, 1, 200), (1, 1, 0), (32, 1, 0), (2, 1, 500), (1, 16, 200),
    (4, 8, 0), (1, 1, 1000), (16, 1, 20), (1, 32, 500), (1, 1, 100),
)  # fmt: skip
"""Passes that tell what one takes, before the first is needed: 220 tokens in all."""


@dataclass(slots=True)
class _Kept:
    """Of one sequence.

    Attributes:
        table: its blocks.
        known: its tokens that were known when it was here last, and are computed.
        guessed: tokens computed after those.
    """

    table: BlockTable
    known: int = 0
    guessed: list[int] = field(default_factory=list)


class Drafter:
    """Runs the draft model; the engine's thread alone may use it.

    Args:
        executor: of the draft model, whose steps end before `launch` returns.
        block_size: tokens of a block, there and in the engine.
        caching: whether blocks are kept for equal prefixes.

    Attributes:
        cost_model: of its passes.
        most_tokens: of a sequence that it can say something of.
    """

    def __init__(self, executor: Executor, block_size: int, *, caching: bool = True) -> None:
        self.executor = executor
        groups = executor.groups
        self.pool = BlockPool(executor.num_blocks, block_size, caching=caching, groups=groups)
        self.cost_model = CostModel()
        most = groups.most_tokens(executor.num_blocks, block_size)
        self.most_tokens = min(executor.spec.max_position_embeddings, most)
        self._kept: dict[Sequence, _Kept] = {}
        self._copies: list[tuple[int, int]] = []  # of blocks, to make before the next pass

    def measure(self, passes: Iterable[tuple[int, int, int]] = _MEASURED) -> None:
        """Learn what passes take, on tokens of no request; those for which there is no room are left out.

        Args:
            passes: (sequences, tokens of each, tokens before those).
        """
        for count, length, start in passes:
            tables = [BlockTable(self.pool) for _ in range(count)]
            fits = start + length <= self.most_tokens
            if fits and not any(table.grow(0, start + length) is None for table in tables):
                self._run([(table, [0] * length, start) for table in tables], _greedy(count, length))
            for table in tables:
                table.free()

    def lag(self, seq: Sequence) -> int:
        """Tokens of a sequence to compute before the first guess."""
        return len(seq.token_ids) - self._settled(seq).known

    def seconds(self, lags: Many[int], contexts: Many[int]) -> float:
        """What a pass takes.

        Args:
            lags: tokens that it computes of each sequence.
            contexts: tokens of each, after it.
        """
        positions = sum(attended(context - lag, lag) for lag, context in zip(lags, contexts, strict=True))
        return self.cost_model.predict(_work(lags, positions, sum(contexts)))

    def catch_up(self, wanted: dict[Sequence, int]) -> Iterable[Sequence]:
        """Compute so many more tokens of sequences, in one pass, but the newest of none; returns those that it can."""
        feeds: dict[Sequence, list[int]] = {}
        for seq, count in wanted.items():
            kept = self._settled(seq)
            tokens = seq.token_ids[kept.known : min(kept.known + count, len(seq.token_ids) - 1)]
            if tokens and self._takes(seq, kept, tokens, 0):
                feeds[seq] = tokens
        if feeds:
            self._pass(feeds)
        for seq, tokens in feeds.items():
            self._kept[seq].known += len(tokens)
            self._publish(seq, self._kept[seq])
        return feeds

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """The guesses of sequences; none for one that cannot be drafted.

        Args:
            wanted: how many of each, at least 1.
        """
        feeds: dict[Sequence, list[int]] = {}
        for seq, count in wanted.items():
            kept = self._settled(seq)
            tokens = seq.token_ids[kept.known :]
            if self._takes(seq, kept, tokens, count - 1):
                feeds[seq] = tokens
        said: dict[Sequence, list[int]] = {seq: [] for seq in feeds}
        while feeds:
            drawn = self._pass(feeds)
            for seq, token in zip(feeds, drawn, strict=True):
                kept, so_far = self._kept[seq], said[seq]
                kept.guessed += so_far[-1:]
                kept.known = len(seq.token_ids)
                so_far += [token] if token >= 0 else []
            feeds = {seq: said[seq][-1:] for seq in feeds if len(said[seq]) == len(self._kept[seq].guessed) + 1}
            feeds = {seq: token for seq, token in feeds.items() if len(said[seq]) < wanted[seq]}
        for seq in said:
            self._publish(seq, self._kept[seq])
        return said

    def ended(self, seq: Sequence) -> None:
        """The sequence is gone."""
        if (kept := self._kept.pop(seq, None)) is not None:
            kept.table.free()

    def forget(self) -> None:
        """Let go of all sequences."""
        for seq in list(self._kept):
            self.ended(seq)

    def check_integrity(self) -> None:
        """As `Scheduler.check_integrity`."""
        self.pool.check_integrity([kept.table.held() for kept in self._kept.values()])

    def close(self) -> None:
        """Give up the model."""
        self._kept.clear()
        self.executor.close()

    def _settled(self, seq: Sequence) -> _Kept:
        """What is kept of a sequence, without the guesses that were wrong."""
        kept = self._kept.get(seq)
        if kept is None:
            size = self.pool.block_size
            full = (len(seq.token_ids) - 1) // size
            cached = self.pool.match(seq.hashes(size)[:full] if self.pool.caching else ())
            kept = self._kept[seq] = _Kept(BlockTable(self.pool, cached), len(cached) * size)
        elif kept.guessed:
            said = seq.token_ids[kept.known : kept.known + len(kept.guessed)]
            kept.known += sum(takewhile(bool, map(eq, kept.guessed, said)))
            kept.known = min(kept.known, len(seq.token_ids) - 1)
            kept.guessed.clear()
            kept.table.shrink(kept.known)
        return kept

    def _takes(self, seq: Sequence, kept: _Kept, tokens: list[int], guesses: int) -> bool:
        """Whether these tokens, and guesses after them, can be computed; their blocks are there then."""
        end = kept.known + len(tokens) + guesses
        if end > self.most_tokens or max(tokens) >= self.executor.spec.vocab_size:
            return False
        if self._grown(kept, end):
            return True
        for other in [other for other in self._kept if not other.table.blocks]:  # it was preempted
            self.ended(other)
        return seq in self._kept and self._grown(kept, end)

    def _grown(self, kept: _Kept, end: int) -> bool:
        kept.table.pass_by(kept.known)  # what is known stays known
        copies = kept.table.grow(kept.known, end)
        self._copies += copies or []
        return copies is not None

    def _pass(self, feeds: dict[Sequence, list[int]]) -> list[int]:
        """Compute tokens that follow what is computed of sequences; returns what is drawn after each."""
        rows = []
        for seq, tokens in feeds.items():
            kept = self._kept[seq]
            rows.append((kept.table, tokens, kept.known + len(kept.guessed)))
        return self._run(rows, _sampling(list(feeds), rows))

    def _run(self, rows: list[tuple[BlockTable, list[int], int]], sampling: SamplingRows) -> list[int]:
        lags, starts = [len(tokens) for _, tokens, _ in rows], [start for _, _, start in rows]
        contexts = np.array(lags, np.int32) + np.array(starts, np.int32)
        batch = StepBatch(
            token_ids=np.array([token for _, tokens, _ in rows for token in tokens], np.int32),
            query_start=np.cumsum([0, *lags], dtype=np.int32),
            context_lens=contexts,
            block_tables=lay_out([table for table, _, _ in rows]),
            block_copies=self._copies,
            sampling=sampling,
        )
        self._copies = []
        result = self.executor.launch(batch)()
        positions = sum(map(attended, starts, lags))
        self.cost_model.observe(_work(lags, positions, int(contexts.sum())), result.seconds)
        return [int(token) for token in result.token_ids]

    def _publish(self, seq: Sequence, kept: _Kept) -> None:
        if self.pool.caching and kept.known // self.pool.block_size > kept.table.num_published:
            kept.table.publish(seq.hashes(self.pool.block_size), kept.known)


def load_drafter(source: Source, config: EngineConfig, tokenizer: Tokenizer) -> tuple[Drafter, EngineConfig]:
    """Load the draft model that the settings name, and measure it.

    Args:
        source, tokenizer: of the model that it drafts for.

    Returns:
        it, and the settings with which that model is to be loaded.

    Raises:
        ModelError, ConfigError: it cannot be loaded, or has another tokenizer.
    """
    from octavo.execution.load import load_draft

    assert config.draft is not None
    draft = resolve_source(config.draft)
    check_draft(tokenizer, source.name, draft)
    executor, left = load_draft(source, draft, config)
    drafter = Drafter(executor, config.block_size, caching=config.enable_prefix_caching)
    drafter.measure()
    return drafter, left


def _work(lags: Many[int], positions: int, context: int) -> StepWork:
    return StepWork(sum(lags), len(lags), positions, context, has_prompts=max(lags) > 1)


def _sampling(sequences: list[Sequence], rows: list[tuple[BlockTable, list[int], int]]) -> SamplingRows:
    """Rows that draw as the engine's own will, but for what is done to its logits."""
    columns = np.array([seq.group.columns for seq in sequences], np.float64).T
    return SamplingRows(
        token_index=np.cumsum([len(tokens) for _, tokens, _ in rows], dtype=np.int32) - 1,
        temperature=columns[0].astype(np.float32),
        top_k=columns[1].astype(np.int32),
        top_p=columns[2].astype(np.float32),
        min_p=columns[3].astype(np.float32),
        seed=np.array([seq.group.seed_of(seq.index) for seq in sequences], np.uint64),
        position=np.array([start + len(tokens) for _, tokens, start in rows], np.int64),
        num_logprobs=np.full(len(rows), -1, np.int32),
    )


def _greedy(count: int, length: int) -> SamplingRows:
    ones = np.ones(count, np.float32)
    return SamplingRows(
        token_index=np.arange(1, count + 1, dtype=np.int32) * length - 1,
        temperature=ones * 0,
        top_k=np.zeros(count, np.int32),
        top_p=ones,
        min_p=ones * 0,
        seed=np.zeros(count, np.uint64),
        position=np.full(count, length, np.int64),
        num_logprobs=np.full(count, -1, np.int32),
    )
