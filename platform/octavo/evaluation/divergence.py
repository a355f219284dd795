"""Measures how far one model's next-token distributions diverge from another's, over a text.

The text is cut into windows of equal length that do not overlap. Each window is a sequence of its own and starts with
the model's BOS token, if it has one. Both models read a window in the same steps of `CHUNK` tokens, and each step's
logits are compared before the next step runs, so memory is bounded by two times CHUNK x vocabulary.

KL divergence is that of Kullback and Leibler (1951): sum over tokens of p log(p / q) in nats, p being the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from octavo.layer_groups import LayerGroups
from octavo.models.spec import ModelSpec
from octavo.step import Int32, SamplingRows, StepBatch

CHUNK = 64
"""Tokens of a step. With a vocabulary of 262,144 two chunks of logits take 134 MB."""


class Model(Protocol):
    """Something that runs steps and returns all their logits, such as `execution.executor.LocalExecutor`."""

    block_size: int
    groups: LayerGroups

    @property
    def spec(self) -> ModelSpec: ...

    def logits(self, batch: StepBatch) -> Tensor:
        """[T, V] float32 after every token of a step."""
        ...


@dataclass(frozen=True, slots=True)
class Divergence:
    """How a model diverges from a reference on a text.

    Attributes:
        tokens: positions compared: all that have a next token in their window.
        window: tokens of a window, the BOS token included.
        perplexity, reference_perplexity: exp of the mean negative log probability of the text's actual next token.
        mean_kl, p99_kl, max_kl: KL divergence of the model from the reference, nats per position.
        top1: share of positions where both have the same most likely token.
    """

    tokens: int
    window: int
    perplexity: float
    reference_perplexity: float
    mean_kl: float
    p99_kl: float
    max_kl: float
    top1: float


@dataclass(frozen=True, slots=True)
class _Rows:
    """Measurements at the n positions of one chunk, [n] each."""

    kl: Tensor
    loss: Tensor
    reference_loss: Tensor
    same: Tensor


def measure(model: Model, reference: Model, windows: list[list[int]], *, progress: bool = False) -> Divergence:
    """Compare a model with a reference on windows of token ids, all but the last of equal length.

    The KV caches of both are overwritten from block 0 on.
    """
    parts = []
    for tokens in tqdm(windows, desc="Comparing", unit="window", disable=not progress):
        both = zip(window_logits(model, tokens), window_logits(reference, tokens), strict=True)
        targets = torch.split(torch.tensor(tokens[1:]), CHUNK)
        parts += [_compare(ours, theirs, after) for (ours, theirs), after in zip(both, targets, strict=True)]
    kl, loss, reference_loss = (
        torch.cat([getattr(part, name) for part in parts]).double() for name in ("kl", "loss", "reference_loss")
    )
    return Divergence(
        tokens=len(kl),
        window=len(windows[0]),
        perplexity=loss.mean().exp().item(),
        reference_perplexity=reference_loss.mean().exp().item(),
        mean_kl=kl.mean().item(),
        p99_kl=kl.quantile(0.99).item(),
        max_kl=kl.max().item(),
        top1=torch.cat([part.same for part in parts]).double().mean().item(),
    )


def cut(tokens: list[int], window: int, begin: list[int]) -> list[list[int]]:
    """Windows of `window` tokens, each starting with `begin`; a last window with fewer than two text tokens is
    dropped."""
    size = window - len(begin)
    return [begin + tokens[i : i + size] for i in range(0, len(tokens) - 1, size)]


def window_logits(model: Model, tokens: list[int]) -> Iterator[Tensor]:
    """Logits [n, V] after every token but the last, `CHUNK` tokens at a time."""
    tables = _tables(1, len(tokens), model)
    for start in range(0, len(tokens) - 1, CHUNK):
        end = min(start + CHUNK, len(tokens) - 1)
        yield model.logits(_step([tokens[start:end]], [end], tables))


def greedy_divergence(model: Model, reference: Model, prompts: list[list[int]], num_tokens: int) -> list[int | None]:
    """For each prompt, after how many tokens the model's greedy continuation first differs from the reference's.

    The reference generates. The model reads that continuation and predicts each token; up to its first different
    prediction its own continuation would be the same.

    Args:
        prompts: of equal length, short enough to be one step together.
        num_tokens: most tokens of a continuation.

    Returns:
        Per prompt, tokens before the first difference; None where there is none in `num_tokens`.
    """
    tables = _tables(len(prompts), len(prompts[0]) + num_tokens, reference)
    lines = new = [list(prompt) for prompt in prompts]
    for _ in range(num_tokens):
        scores = reference.logits(_step(new, [len(line) for line in lines], tables))
        ends = torch.tensor([len(tokens) for tokens in new]).cumsum(0) - 1
        new = [[int(token)] for token in scores[ends].argmax(-1)]
        lines = [line + token for line, token in zip(lines, new, strict=True)]
    return [_first_difference(model, line, len(prompt)) for line, prompt in zip(lines, prompts, strict=True)]


def _first_difference(model: Model, line: list[int], prompt: int) -> int | None:
    chosen = torch.cat([scores.argmax(-1).cpu() for scores in window_logits(model, line)])
    different = (chosen != torch.tensor(line[1:]))[prompt - 1 :].nonzero()
    return int(different[0]) if len(different) else None


def _compare(ours: Tensor, theirs: Tensor, targets: Tensor) -> _Rows:
    p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
    after = targets.to(p.device)[:, None]
    return _Rows(
        kl=(p.exp() * (p - q)).sum(-1).clamp_(min=0).cpu(),  # rounding can make it slightly negative
        loss=-q.gather(1, after)[:, 0].cpu(),
        reference_loss=-p.gather(1, after)[:, 0].cpu(),
        same=(p.argmax(-1) == q.argmax(-1)).cpu(),
    )


def _tables(sequences: int, tokens: int, model: Model) -> Int32:
    """Block tables for sequences of up to `tokens` tokens, each of which has blocks of its own for all of them."""
    shape = model.groups.count, sequences, -(-tokens // model.block_size)
    tables = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    return tables if len(tables) > 1 else tables[0]


def _step(new: list[list[int]], lengths: list[int], tables: Int32) -> StepBatch:
    """A step that computes `new` tokens, after which the sequences have `lengths` tokens."""
    return StepBatch(
        token_ids=np.array([token for tokens in new for token in tokens], np.int32),
        query_start=np.cumsum([0] + [len(tokens) for tokens in new]).astype(np.int32),
        context_lens=np.array(lengths, np.int32),
        block_tables=tables,
        block_copies=[],
        sampling=_NO_ROWS,
    )


def _no_rows() -> SamplingRows:
    whole, real = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return SamplingRows(
        token_index=whole,
        temperature=real,
        top_k=whole,
        top_p=real,
        min_p=real,
        seed=np.zeros(0, np.uint64),
        position=np.zeros(0, np.int64),
        num_logprobs=whole,
    )


_NO_ROWS = _no_rows()
