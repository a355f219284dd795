"""The native runner: a whole step on the CPU in one call, weights in their own format.

Two modes. `exact` (dtype float32) computes in float32 as if the weights were dequantised, like the torch runner. The
fast one (dtype bfloat16) rounds K, V and attention's weights to bfloat16, multiplies bf16 matrices with activations
rounded to bf16, and a GGUF file's integer codes with activations quantised to 8 bits in groups of 32. In either, a
sequence's logits have the same bits whatever else is in the step, however its prompt is cut into chunks, and on any
number of threads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo.execution.treatment import treat
from octavo.step import Int64, LogprobRow, SamplingRows, StepBatch, StepResult
from octavo_kernels.decoder import NativeDecoder, PackedKV
from octavo_kernels.sampling import sample

if TYPE_CHECKING:
    import torch

    from octavo.execution.runner import Join


class NativeRunner:
    """Executes steps like `Runner`; loads torch only for log probabilities.

    Args:
        decoder: the model.
        kv: its cache.
        join: as for `Runner`; None where there is one rank.
    """

    def __init__(self, decoder: NativeDecoder, kv: PackedKV, join: Join | None) -> None:
        self._decoder = decoder
        self._kv = kv
        self._join = join

    def run(self, batch: StepBatch) -> StepResult:
        """One step."""
        begin = time.perf_counter()
        # The n sequences of one prompt are drawn from the same logits: compute those once.
        places, line = np.unique(batch.sampling.token_index, return_inverse=True)
        logits = self._joined(self._step(batch, places.astype(np.int64)))
        nothing = np.zeros(0, np.int64), dict[int, LogprobRow]()
        tokens, logprobs = nothing if logits is None else _sample(logits, line, batch.sampling)
        return StepResult(tokens, logprobs, self._prompt_logprobs(batch), time.perf_counter() - begin)

    def logits(self, batch: StepBatch) -> torch.Tensor:
        """One step that samples nothing: logits [T, V] float32 after every token."""
        import torch

        return torch.from_numpy(self._step(batch, np.arange(batch.num_tokens))).clone()  # the next step writes there

    def _step(self, batch: StepBatch, lines: Int64) -> npt.NDArray[np.float32]:
        self._kv.copy(batch.block_copies)
        arrays = (batch.token_ids, batch.query_start, batch.context_lens, batch.block_tables)
        ids, starts, contexts, tables = (np.ascontiguousarray(x, np.int32) for x in arrays)
        return self._decoder.step(ids, starts, contexts, tables, lines, whole=bool(batch.prompt_logprobs))

    def _joined(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        if self._join is None:
            return logits
        import torch

        joined = self._join(torch.from_numpy(logits))
        return None if joined is None else joined.numpy()

    def _prompt_logprobs(self, batch: StepBatch) -> list[LogprobRow]:
        if not batch.prompt_logprobs:
            return []
        from octavo.execution.sampler import prompt_logprobs

        return prompt_logprobs(batch.prompt_logprobs, self._logits)

    def _logits(self, rows: list[int]) -> torch.Tensor | None:
        import torch

        logits = self._joined(self._decoder.logits(np.array(rows, np.int64)))
        return None if logits is None else torch.from_numpy(logits)


def _sample(
    logits: npt.NDArray[np.float32], line: npt.NDArray[np.int64], rows: SamplingRows
) -> tuple[Int64, dict[int, LogprobRow]]:
    """As `sampler.sample`; row r is drawn from logits[line[r]], which the next step overwrites anyway."""
    options = rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.position
    undo = treat(logits, line, rows) if rows.logit_bias or rows.banned or rows.penalties else None
    tokens = sample(logits, line, *options)
    if not (rows.num_logprobs >= 0).any():
        return tokens, {}
    if undo is not None:
        undo()
    import torch

    from octavo.execution.sampler import sampled_logprobs

    return tokens, sampled_logprobs(torch.from_numpy(logits), line, tokens, rows.num_logprobs)
