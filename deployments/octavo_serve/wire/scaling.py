"""What the autoscaler last decided, as Serve's controller keeps it in Ray's key-value store for the gateways."""

from __future__ import annotations

import msgspec

MAX_CHANGES = 16


class Change(msgspec.Struct):
    """The number of shards that a model is to have changed.

    Attributes:
        at: seconds since 1970.
        before, after: shards to have.
        reason, demand: as of `octavo.scaling.policy.ScalingDecision`.
        met: whether these are as many as were asked for: `max`, or what fits on the cluster, may be fewer.
    """

    at: float
    before: int
    after: int
    reason: str
    demand: float
    met: bool = True


class Scaling(msgspec.Struct):
    """One model's autoscaler.

    Attributes:
        decided_at: seconds since 1970 of the decision in the next four.
        wanted, running: shards to have, and that serve.
        reason, demand: as of `octavo.scaling.policy.ScalingDecision`.
        counts: changes by reason, since the controller started.
        changes: the last of them, oldest first.
    """

    decided_at: float
    wanted: int
    running: int
    reason: str
    demand: float
    counts: dict[str, int] = {}
    changes: list[Change] = []


def scaling_key(app: str, deployment: str) -> str:
    """Where a deployment's is kept."""
    return f"octavo:scaling:{app}:{deployment}"


encode_scaling = msgspec.json.Encoder().encode
decode_scaling = msgspec.json.Decoder(Scaling).decode
