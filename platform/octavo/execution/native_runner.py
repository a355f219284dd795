"""The native runner: a whole step on the CPU in one call, weights in their own format.

Two modes. `exact` (dtype float32) computes in float32 as if the weights were dequantised, like the torch runner. The
fast one (dtype bfloat16) rounds K, V and attention's weights to bfloat16, multiplies bf16 matrices with activations
rounded to bf16, and a GGUF file's integer codes with activations quantised to 8 bits in groups of 32. In either, a
sequence's logits have the same bits whatever else is in the step, however its prompt is cut into chunks, and on any
number of threads.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch

from octavo.execution.runner import Join
from octavo.execution.sampler import prompt_logprobs, sampled_logprobs, treat
from octavo.step import Int64, LogprobRow, SamplingRows, StepBatch, StepResult
from octavo_kernels.decoder import NativeDecoder, PackedKV
from octavo_kernels.sampling import sample


class NativeRunner:
    """Executes steps like `Runner`.

    Args:
        decoder: the model.
        kv: its cache.
        join: as for `Runner`.
    """

    def __init__(self, decoder: NativeDecoder, kv: PackedKV, join: Join) -> None:
        self._decoder = decoder
        self._kv = kv
        self._join = join

    def run(self, batch: StepBatch) -> StepResult:
        """One step."""
        begin = time.perf_counter()
        # The n sequences of one prompt are drawn from the same logits: compute those once.
        places, line = np.unique(batch.sampling.token_index, return_inverse=True)
        logits = self._join(torch.from_numpy(self._step(batch, places.astype(np.int64))))
        nothing = np.zeros(0, np.int64), dict[int, LogprobRow]()
        tokens, logprobs = nothing if logits is None else _sample(logits.numpy(), line, batch.sampling)
        prompt = prompt_logprobs(batch.prompt_logprobs, self._logits)
        return StepResult(tokens, logprobs, prompt, time.perf_counter() - begin)

    def logits(self, batch: StepBatch) -> torch.Tensor:
        """One step that samples nothing: logits [T, V] float32 after every token."""
        return torch.from_numpy(self._step(batch, np.arange(batch.num_tokens))).clone()  # the next step writes there

    def _step(self, batch: StepBatch, lines: Int64) -> npt.NDArray[np.float32]:
        self._kv.copy(batch.block_copies)
        arrays = (batch.token_ids, batch.query_start, batch.context_lens, batch.block_tables)
        ids, starts, contexts, tables = (np.ascontiguousarray(x, np.int32) for x in arrays)
        return self._decoder.step(ids, starts, contexts, tables, lines, whole=bool(batch.prompt_logprobs))

    def _logits(self, rows: list[int]) -> torch.Tensor | None:
        return self._join(torch.from_numpy(self._decoder.logits(np.array(rows, np.int64))))


def _sample(
    logits: npt.NDArray[np.float32], line: npt.NDArray[np.int64], rows: SamplingRows
) -> tuple[Int64, dict[int, LogprobRow]]:
    """As `sampler.sample`; row r is drawn from logits[line[r]]."""
    wants_logprobs = bool((rows.num_logprobs >= 0).any())
    drawn_from = logits
    if rows.logit_bias or rows.banned or rows.penalties or wants_logprobs:
        logits, line = logits[line], np.arange(len(line))
        drawn_from = treat(torch.from_numpy(logits), rows).numpy()
    options = rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.position
    tokens = sample(drawn_from, line, *options)
    if not wants_logprobs:
        return tokens, {}
    return tokens, sampled_logprobs(torch.from_numpy(logits), tokens, rows.num_logprobs)
