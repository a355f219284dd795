"""Adapters that begin inside of a prompt (activated LoRA, Greenewald et al. 2025).

    0 ............. turn.start ............ num_prompt ......
    [ the model itself ][ with the adapter ....................

What lies before is the model's own, bit for bit, so its blocks are shared with everybody who has the same text. A row
of a step is computed one way or the other: the tokens of a prompt on either side come in two steps.
"""

from __future__ import annotations

from octavo.engine.sequence import Sequence


def adapter_of(seq: Sequence) -> str:
    """Digest of what the next tokens of a sequence are computed with; "" for the model itself."""
    turn = seq.group.origin.turn
    return "" if turn is not None and seq.num_computed < turn.start else seq.group.request.adapter_digest


def one_way(seq: Sequence, count: int) -> int:
    """How many of a sequence's next tokens are computed the same way, at most `count`."""
    turn = seq.group.origin.turn
    return count if turn is None or seq.num_computed >= turn.start else min(count, turn.start - seq.num_computed)
