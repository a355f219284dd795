"""How memory is divided between KV blocks and the states of recurrent layers."""

from __future__ import annotations

from typing import NamedTuple

BLOCKS_PER_STATE = 4
"""How many times the bytes of a state lie between two checkpoints of a long prompt: they take a fifth of the memory."""


class StateRoom(NamedTuple):
    """What fits.

    Attributes:
        blocks: of keys and values.
        states: for sequences that run, two each, and for checkpoints.
        interval: blocks between the checkpoints of a long prompt.
    """

    blocks: int
    states: int
    interval: int


def divide(total: int, block: int, state: int, sequences: int) -> StateRoom:
    """Divide memory; sequences get what they need first, but no more than half.

    Args:
        total, block, state: bytes.
        sequences: most that run at once. There are fewer where `states` is less than twice as many.
    """
    running, interval = min(2 * sequences + 2, total // (2 * state)), -(-BLOCKS_PER_STATE * state // block)
    blocks = (total - running * state) * interval // (block * interval + state)
    return StateRoom(blocks, running + blocks // interval, interval)
