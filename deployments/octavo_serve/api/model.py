"""A served model as the gateway sees it: its tokenizer here, its shards behind a protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from octavo.request import Placement, Request, SamplingParams, SequenceUpdate
from octavo.text.tokenizer import Tokenizer
from octavo_serve.wire.messages import ModelInfo


class ModelClient(Protocol):
    """The shards of one model."""

    async def describe(self) -> ModelInfo: ...

    def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        """Stream a request's updates; what comes while the caller is busy waits and comes in one list.

        Closing the stream aborts the request. A caller that does not read holds no place at a shard once all has come.

        Raises:
            BadRequest, Overloaded, EngineDead.
        """
        ...

    def placement(self, request_id: str) -> Placement | None:
        """Where a request was sent whose stream is open; None before that, and without a router."""
        ...

    async def abort(self, request_id: str, index: int) -> None:
        """End one sequence of a request that goes on."""
        ...


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets where it says nothing.

    Attributes:
        max_tokens: most tokens of a chat's answer; None is what the context holds.
        sampling: names of `SamplingParams` -> values: what the model's makers recommend.
    """

    max_tokens: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)

    def fill_in(self, params: SamplingParams, given: Mapping[str, object], room: int) -> None:
        """Set what a request leaves open.

        Args:
            given: what it says, by the names of `SamplingParams`.
            room: tokens of the context beside the prompt.
        """
        for name, value in self.sampling.items():
            decided = name == "temperature" and given.get("top_p") == 0  # greedy already
            if given.get(name) is None and not decided:
                setattr(params, name, value)
        if params.max_tokens is None and self.max_tokens is not None:
            params.max_tokens = max(params.min_tokens, min(self.max_tokens, room))


NO_DEFAULTS = Defaults()


@dataclass(slots=True)
class ServedModel:
    """One entry of /v1/models."""

    name: str
    created: int  # seconds since 1970
    tokenizer: Tokenizer
    client: ModelClient
    defaults: Defaults = NO_DEFAULTS
