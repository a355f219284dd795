"""Answers that OpenAI's and vLLM's requests for vectors, scores and classes have in common."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any, Protocol

from octavo.pooled import Float32
from octavo_serve.api.listing import Listing
from octavo_serve.surfaces.vectors.fields import usage


class Answered(Protocol):
    """What is told of every request."""

    @property
    def id(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...


def as_list(found: Answered, count: int, entry: Callable[[int], Any], weight: int) -> Listing:
    """A list of `count` entries under `data`, with who made it and what it took; the rest as of `Listing`."""
    return Listing(
        count=count,
        entry=entry,
        weight=weight,
        at=("data",),
        before={
            "id": found.id,
            "object": "list",
            "created": int(time.time()),
            "model": found.model,
        },
        after={"usage": usage(found.prompt_tokens)},
    )


def written(vector: Float32, encoding: str | None) -> list[float] | str:
    """A vector's numbers, or base64 of them as little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
