"""A served model as the gateway sees it: its tokenizer here, its shards behind a protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from octavo.block_hash import hash_chain, root_hash
from octavo.request import Request, SequenceUpdate
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a gateway must know about a model to validate and route requests.

    Attributes:
        hash_name: what the engine's block hashes start from.
        max_model_len: tokens of one sequence, prompt and output.
        vocab_size: rows of the model's output; token ids are below it.
        block_size: tokens per KV block.
    """

    hash_name: str
    max_model_len: int
    vocab_size: int
    block_size: int


class ModelClient(Protocol):
    """The shards of one model."""

    async def describe(self) -> ModelInfo: ...

    def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        """Stream a request's updates; closing the stream aborts it.

        Raises:
            BadRequest, Overloaded, EngineDead.
        """
        ...

    async def abort(self, request_id: str, index: int) -> None:
        """End one sequence of a request that goes on."""
        ...


@dataclass(slots=True)
class ServedModel:
    """One entry of /v1/models."""

    name: str
    created: int  # seconds since 1970
    tokenizer: Tokenizer
    client: ModelClient


def block_hashes(request: Request, info: ModelInfo) -> list[bytes]:
    """The chain the engine will compute for the request's prompt; it tells the router where its prefix lies."""
    root = root_hash(info.hash_name, salt=request.cache_salt)
    return hash_chain(root, request.prompt_token_ids, info.block_size)
