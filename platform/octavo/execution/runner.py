"""The torch runner: one step on any device, through the decoder and the ops of `octavo_kernels`."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from octavo.execution.kv_storage import KVStorage
from octavo.execution.sampler import prompt_logprobs, sample
from octavo.models.decoder import Decoder
from octavo.step import LogprobRow, StepBatch, StepResult
from octavo_kernels.paged_attention import PagedBatch

Join = Callable[[Tensor], Tensor | None]


class Runner:
    """Executes steps: copies blocks, runs the decoder, samples.

    Args:
        join: this rank's logits -> those of the whole vocabulary on the rank that samples, None on the others.
    """

    def __init__(self, decoder: Decoder, kv: KVStorage, block_size: int, device: str, join: Join) -> None:
        self._decoder = decoder
        self._join = join
        self._kv = kv
        self._block_size = block_size
        self._device = device

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> StepResult:
        """One step."""
        begin = time.perf_counter()
        hidden = self._forward(batch)
        # The n sequences of one prompt are drawn from the same logits: compute those once.
        places, row_of = np.unique(batch.sampling.token_index, return_inverse=True)
        logits = self._join(self._decoder.logits(hidden[torch.from_numpy(places).to(self._device)]))
        if logits is not None and len(places) < len(row_of):
            logits = logits[torch.from_numpy(row_of).to(self._device)]
        nothing = np.zeros(0, np.int64), dict[int, LogprobRow]()
        ids, logprobs = nothing if logits is None or not len(row_of) else sample(logits, batch.sampling)
        prompt = prompt_logprobs(batch.prompt_logprobs, lambda rows: self._join(self._decoder.logits(hidden[rows])))
        return StepResult(ids, logprobs, prompt, time.perf_counter() - begin)

    @torch.inference_mode()
    def logits(self, batch: StepBatch) -> Tensor:
        """One step that samples nothing: logits [T, V] float32 after every token."""
        return self._decoder.logits(self._forward(batch))

    def _forward(self, batch: StepBatch) -> Tensor:
        self._kv.copy(batch.block_copies)
        context = PagedBatch.build(
            batch.query_start, batch.context_lens, batch.block_tables, self._block_size, self._device
        )
        tokens = torch.from_numpy(batch.token_ids).to(self._device)
        return self._decoder.forward(tokens, context, self._kv.layers)
