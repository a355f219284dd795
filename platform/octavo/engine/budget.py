"""How many tokens of prompts the next step may compute beside what decodes."""

from __future__ import annotations

from octavo.config import EngineConfig
from octavo.cost_model import CostModel, StepWork
from octavo.engine.sequence import Sequence

ALONE_SECONDS = 0.015
"""Of a step that holds nothing but requests below all others: as long as somebody who comes meanwhile waits for it."""


def prompt_budget(running: list[Sequence], config: EngineConfig, cost_model: CostModel, *, alone: bool = False) -> int:
    """Tokens that sequences which do not decode may share in the next step: the chunk.

    It is what `max_num_batched_tokens` leaves, and with `target_itl` set no more than the cost model allows while
    sequences decode. At least a block (or the whole budget if that is smaller): neither many decoding sequences nor a
    target that cannot be met may stop prompts for ever.

    Args:
        alone: all that is there is below all others.
    """
    decoding = [seq for seq in running if seq.is_decoding and not seq.is_ending]
    budget = config.max_num_batched_tokens
    least = min(config.block_size, budget)
    chunk = max(budget - len(decoding), least)
    target = min(config.target_itl or ALONE_SECONDS, ALONE_SECONDS) if alone else config.target_itl
    if target is None or not (decoding or alone):
        return chunk
    context = sum(seq.num_known for seq in decoding)  # each attends to all it knows
    start = next((seq.num_computed for seq in running if not seq.is_decoding), 0)
    without = StepWork(len(decoding), len(decoding), context, context, has_prompts=False)
    within = cost_model.tokens_within(target, without, start)
    return chunk if within is None else min(chunk, max(within, least))
