"""What a shard that starts must know of its model's weights, as gateways keep it in Ray's key-value store."""

from __future__ import annotations

import msgspec


class Kept(msgspec.Struct):
    """What operators have done since the config was deployed.

    Attributes:
        source: of the config, for which this holds.
        path: of the weights that have taken its place; "": none have.
        level: at which the model sleeps; 0 if it does not.
    """

    source: str
    path: str = ""
    level: int = 0


def weights_key(app: str, deployment: str) -> str:
    """Where a deployment's is kept."""
    return f"octavo:weights:{app}:{deployment}"


encode_kept = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder(Kept).decode


def decode_kept(value: bytes | None, source: str) -> Kept:
    """What is kept for this source; what is for another is none."""
    found = Kept(source) if value is None else _DECODE(value)
    return found if found.source == source else Kept(source)
