"""The one hash of KV blocks: the engine's prefix cache and the router's index both call it, so their keys agree.

A block's hash covers its tokens and, through its parent's hash, everything before it:

    root ── h0 = H(root, tokens[0:B]) ── h1 = H(h0, tokens[B:2B]) ── ...

The root is the salt: model, adapter and cache namespace. An adapter that begins inside of a prompt turns the chain
there: the blocks before it are the model's own, and found by whoever has the same text.

    root ── h0 ── H(h0, adapter, where it begins) ── h1 ── ...       it begins in the second block

The hash is unkeyed BLAKE2b, cut to 16 bytes. No way to
construct collisions is known, so one tenant cannot forge a prefix that would be served from another tenant's cache; a
64-bit non-cryptographic hash would allow that. It takes 1.0 us per block of 16 tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from octavo.request import Adapter

HASH_BYTES = 16


@lru_cache(maxsize=256)
def root_hash(model: str, adapter: str = "", salt: str = "") -> bytes:
    """The chain's first parent, for one model, adapter and cache namespace."""
    return blake2b("\0".join((model, adapter, salt)).encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


class Turn(NamedTuple):
    """Where a chain goes over from the model's own blocks to those of an adapter.

    Attributes:
        start: position of the first token that is computed with it.
    """

    start: int
    adapter: str

    @classmethod
    def of(cls, adapter: Adapter | None, prompt: Sequence[int]) -> Turn | None:
        """None where an adapter changes all of a prompt, or nothing."""
        if adapter is None or not adapter.invocation or (start := adapter.begins_at(prompt)) is None:
            return None
        return cls(start, adapter.digest)

    def after(self, parent: bytes) -> bytes:
        """What stands in the parent's place for the block in which it begins."""
        return blake2b(parent + f"{self.start}\0{self.adapter}".encode(), digest_size=HASH_BYTES).digest()


class Origin(NamedTuple):
    """What the chain of a prompt starts from."""

    root: bytes
    turn: Turn | None = None

    @classmethod
    def of(cls, model: str, adapter: Adapter | None, salt: str, prompt: Sequence[int]) -> Origin:
        """Of a prompt that is computed with an adapter."""
        whole = "" if adapter is None or adapter.invocation else adapter.digest
        return cls(root_hash(model, whole, salt), Turn.of(adapter, prompt))


def hash_in_group(block_hash: bytes, group: int) -> bytes:
    """The hash of the same tokens' block in another group of layers (0: the first, in which it is as it was).

    It differs in the last byte. So two hashes would have to agree in all others for one to be found as the other.
    """
    return block_hash[:-1] + bytes([block_hash[-1] ^ group]) if group else block_hash


def extend_chain(
    chain: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int, turn: Turn | None = None
) -> None:
    """Append to `chain` the hashes of the full blocks of `token_ids` that it does not hold yet."""
    parent = chain[-1] if chain else root
    turned = -1 if turn is None else turn.start // block_size * block_size
    for start in range(len(chain) * block_size, len(token_ids) - block_size + 1, block_size):
        tokens = array("i", token_ids[start : start + block_size]).tobytes()
        if start == turned and turn is not None:
            parent = turn.after(parent)
        parent = blake2b(parent + tokens, digest_size=HASH_BYTES).digest()
        chain.append(parent)


def hash_chain(root: bytes, token_ids: Sequence[int], block_size: int, turn: Turn | None = None) -> list[bytes]:
    """Hashes of the full blocks of `token_ids`, first to last."""
    chain: list[bytes] = []
    extend_chain(chain, root, token_ids, block_size, turn)
    return chain
