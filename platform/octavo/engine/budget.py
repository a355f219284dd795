"""How many tokens of prompts the next step may compute beside what decodes."""

from __future__ import annotations

from octavo.config import EngineConfig
from octavo.cost_model import CostModel, StepWork
from octavo.engine.sequence import Sequence


def prompt_budget(running: list[Sequence], config: EngineConfig, cost_model: CostModel) -> int:
    """Tokens that sequences which do not decode may share in the next step: the chunk.

    It is what `max_num_batched_tokens` leaves, and with `target_itl` set no more than the cost model allows while
    sequences decode. At least a block (or the whole budget if that is smaller): neither many decoding sequences nor a
    target that cannot be met may stop prompts for ever.
    """
    decoding = [seq for seq in running if seq.is_decoding and not seq.is_ending]
    budget = config.max_num_batched_tokens
    least = min(config.block_size, budget)
    chunk = max(budget - len(decoding), least)
    if config.target_itl is None or not decoding:
        return chunk
    context = sum(seq.num_known for seq in decoding)  # each attends to all it knows
    start = next((seq.num_computed for seq in running if not seq.is_decoding), 0)
    without = StepWork(len(decoding), len(decoding), context, context, has_prompts=False)
    within = cost_model.tokens_within(config.target_itl, without, start)
    return chunk if within is None else min(chunk, max(within, least))
