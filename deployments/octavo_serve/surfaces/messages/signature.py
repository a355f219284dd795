"""The signature of a block of thinking.

A client gives a block back as it got it, and the model sees its own thinking again. Where the client asked for
`display: omitted`, the block's text is empty and its signature carries the thinking. The digest tells what this server
signed from what others did, and from what has been cut: it hides nothing, and needs no secret.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

_SIZE = 16


def sign(thinking: str, *, carry: bool) -> str:
    """The signature of a block; with `carry` it holds the thinking."""
    text = thinking.encode("utf-8", "surrogatepass")
    return urlsafe_b64encode(_digest(text) + (text if carry else b"")).decode()


def carried(signature: str) -> str:
    """The thinking in a signature; "" if it is another server's, or holds none."""
    try:
        found = urlsafe_b64decode(signature)
        return found[_SIZE:].decode("utf-8", "surrogatepass") if _digest(found[_SIZE:]) == found[:_SIZE] else ""
    except (binascii.Error, ValueError):
        return ""


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=_SIZE, key=b"octavo thinking").digest()
