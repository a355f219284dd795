"""The torch runner: one step on any device, through the decoder and the ops of `octavo_kernels`."""

from __future__ import annotations

import time

import numpy as np
import torch

from octavo.execution.kv_storage import KVStorage
from octavo.execution.sampler import logprob_rows, sample
from octavo.models.decoder import Decoder
from octavo.step import LogprobRow, StepBatch, StepResult
from octavo_kernels.paged_attention import PagedBatch

_LOGIT_ROWS = 256  # prompt positions whose logits exist at once: 256 x 256k x 4 B = 256 MiB for the largest vocabulary


class Runner:
    """Executes steps: copies blocks, runs the decoder, samples."""

    def __init__(self, decoder: Decoder, kv: KVStorage, block_size: int, device: str) -> None:
        self._decoder = decoder
        self._kv = kv
        self._block_size = block_size
        self._device = device

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> StepResult:
        """One step."""
        begin = time.perf_counter()
        self._kv.copy(batch.block_copies)
        context = PagedBatch.build(
            batch.query_start, batch.context_lens, batch.block_tables, self._block_size, self._device
        )
        tokens = torch.from_numpy(batch.token_ids).to(self._device)
        hidden = self._decoder.forward(tokens, context, self._kv.layers)
        # The n sequences of one prompt are drawn from the same logits: compute those once.
        places, row_of = np.unique(batch.sampling.token_index, return_inverse=True)
        logits = self._decoder.logits(hidden[torch.from_numpy(places).to(self._device)])
        if len(places) < len(row_of):
            logits = logits[torch.from_numpy(row_of).to(self._device)]
        ids, logprobs = sample(logits, batch.sampling) if len(row_of) else (np.zeros(0, np.int64), {})
        prompt = self._prompt_logprobs(hidden, batch.prompt_logprobs)
        return StepResult(ids, logprobs, prompt, time.perf_counter() - begin)

    def _prompt_logprobs(self, hidden: torch.Tensor, wanted: list[tuple[int, int, int]]) -> list[LogprobRow]:
        rows: list[LogprobRow] = []
        for start in range(0, len(wanted), _LOGIT_ROWS):
            places, tokens, counts = map(list, zip(*wanted[start : start + _LOGIT_ROWS], strict=True))
            rows += logprob_rows(self._decoder.logits(hidden[places]), tokens, counts)
        return rows
