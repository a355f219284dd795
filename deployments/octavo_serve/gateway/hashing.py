"""Hashes a request anew whose weights gave way to others before any had answered it: blocks of one are none of the
other's."""

from __future__ import annotations

from dataclasses import replace

from octavo.block_hash import Origin, hash_chain
from octavo.request import Request
from octavo_serve.wire.messages import ModelInfo


def hashed_for(request: Request, info: ModelInfo) -> Request:
    """The request with the hashes that its blocks have at this model: itself, where the first of them shows that."""
    if not (known := request.block_hashes):
        return request
    tokens, size = request.prompt_token_ids, info.block_size
    root, turn = Origin.of(info.hash_name, request.adapter, request.cache_salt, tokens)
    if hash_chain(root, tokens[:size], size, turn)[0] == known[0]:
        return request
    return replace(request, block_hashes=hash_chain(root, tokens, size, turn)[: len(known)])
