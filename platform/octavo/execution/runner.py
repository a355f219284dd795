"""The torch runner: one step on any device, through the decoder and the ops of `octavo_kernels`."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from octavo.execution.graphs import Capture, DecodeGraphs, DecodeInputs, fill_in
from octavo.execution.kv_storage import KVStorage
from octavo.execution.pipeline import Wait
from octavo.execution.sampler import Drawn, begin_sample, prompt_logprobs
from octavo.execution.transfer import fetch, to_device
from octavo.models.decoder import Decoder
from octavo.step import Int64, LogprobRow, StepBatch, StepResult
from octavo_kernels.paged_attention import PagedBatch

Join = Callable[[Tensor], Tensor | None]


class Runner:
    """Executes steps: copies blocks, runs the decoder, samples.

    On a GPU `launch` returns when everything is queued there (see `octavo.execution.pipeline`), and decode steps run as
    CUDA graphs once `use_graphs` was called.

    Args:
        max_rows: tokens drawn in a step at most.
        join: this rank's logits -> those of the whole vocabulary on the rank that samples, None on the others.
    """

    def __init__(
        self, decoder: Decoder, kv: KVStorage, block_size: int, max_rows: int, device: str, join: Join
    ) -> None:
        self._decoder = decoder
        self._join = join
        self._kv = kv
        self._block_size = block_size
        self._device = device
        self._drawn = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._graphs: DecodeGraphs | None = None
        self._ended = 0.0  # when the last result was there

    def use_graphs(self, max_model_len: int, capture: Capture) -> None:
        """Run decode steps as CUDA graphs from now on."""
        width = -(-max_model_len // self._block_size)
        split_keys = self._decoder.split_keys
        inputs = DecodeInputs(self._drawn, width, self._block_size, self._kv.spare_block, split_keys)
        self._graphs = DecodeGraphs(self._compute, inputs, capture)

    def close(self) -> None:
        """Drop the graphs, which hold this runner and so its memory."""
        self._graphs = None

    def run(self, batch: StepBatch) -> StepResult:
        """One step."""
        return self.launch(batch)()

    @torch.inference_mode()
    def launch(self, batch: StepBatch) -> Wait:
        """Begin a step."""
        if self._device != "cpu":
            torch.cuda.set_device(self._device)  # of this thread, which may not be the one that loaded the model
        begun = time.perf_counter()
        hidden = self._forward(batch)
        # The n sequences of one prompt are drawn from the same logits: compute those once.
        places, row_of = np.unique(batch.sampling.token_index, return_inverse=True)
        logits = self._join(self._decoder.logits(self._take(hidden, places)))
        prompt = prompt_logprobs(
            batch.prompt_logprobs,
            lambda rows: self._join(self._decoder.logits(self._take(hidden, np.array(rows)))),
        )
        drawn = self._draw(logits, row_of, batch) if logits is not None and len(row_of) else self._end()

        def wait() -> StepResult:
            tokens, logprobs = drawn()
            begin, self._ended = max(begun, self._ended), time.perf_counter()
            return StepResult(tokens, logprobs, prompt, self._ended - begin)

        return wait

    @torch.inference_mode()
    def logits(self, batch: StepBatch) -> Tensor:
        """One step that samples nothing: logits [T, V] float32 after every token."""
        return self._decoder.logits(self._forward(batch))

    def _draw(self, logits: Tensor, row_of: np.ndarray, batch: StepBatch) -> Drawn:
        unlisted = None
        if batch.sources is not None and batch.sampling.penalties:
            sources = to_device(batch.sources[batch.sampling.token_index], self._device)
            unlisted = torch.where(sources >= 0, self._drawn[sources.clamp(min=0)], -1)
        tokens, wait = begin_sample(self._take(logits, row_of), batch.sampling, unlisted)
        self._drawn[: len(tokens)].copy_(tokens)
        return wait

    def _end(self) -> Drawn:
        """Waits for a step that draws nothing: its end is what its duration is measured by."""
        wait = fetch(self._drawn[:1])

        def nothing() -> tuple[Int64, dict[int, LogprobRow]]:
            wait()
            return np.zeros(0, np.int64), {}

        return nothing

    def _take(self, rows: Tensor, places: np.ndarray) -> Tensor:
        """rows[places], which are often all of them."""
        if len(places) == len(rows) and (places == np.arange(len(rows))).all():
            return rows
        return rows[to_device(places, self._device)]

    def _forward(self, batch: StepBatch) -> Tensor:
        self._kv.copy(batch.block_copies)
        hidden = None if self._graphs is None else self._graphs.run(batch)
        if hidden is not None:
            return hidden
        layout = batch.query_start, batch.context_lens, batch.block_tables, self._block_size
        context = PagedBatch.build(*layout, self._device, self._decoder.split_keys)
        tokens = to_device(batch.token_ids, self._device)
        if batch.sources is not None:
            tokens = fill_in(tokens, to_device(batch.sources, self._device), self._drawn)
        return self._compute(tokens, context)

    def _compute(self, tokens: Tensor, context: PagedBatch) -> Tensor:
        return self._decoder.forward(tokens, context, self._kv.layers)
