"""`encrypted_content`: reasoning that a client carries and gives back, in a form that tells whether it was changed.

The text itself is no secret, for the same client got it in the clear; what the seal keeps is that nobody else's text
comes in as the model's own reasoning. A seal holds for the caller that it was made for, and for the application's
secret.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import sha256

from octavo.errors import BadRequest

_FORM = b"octavo1"
_MAC = 32


def seal(secret: bytes, owner: str, text: str) -> str:
    """The text, and a code over it."""
    content = text.encode("utf-8", "surrogatepass")
    return base64.urlsafe_b64encode(_FORM + _code(secret, owner, content) + content).decode()


def unseal(secret: bytes, owner: str, sealed: str) -> str:
    """The text of `seal`.

    Raises:
        BadRequest: it was changed, or made elsewhere or for another caller.
    """
    try:
        raw = base64.urlsafe_b64decode(sealed)
    except (binascii.Error, ValueError):
        raise _refused() from None
    form, code, content = raw[: len(_FORM)], raw[len(_FORM) : len(_FORM) + _MAC], raw[len(_FORM) + _MAC :]
    if form != _FORM or not hmac.compare_digest(code, _code(secret, owner, content)):
        raise _refused()
    return content.decode("utf-8", "surrogatepass")


def _code(secret: bytes, owner: str, content: bytes) -> bytes:
    name = owner.encode("utf-8", "surrogatepass")
    return hmac.digest(secret, len(name).to_bytes(4, "big") + name + content, sha256)


def _refused() -> BadRequest:
    return BadRequest(
        "input holds an encrypted_content that this server did not make for this caller, or that was changed: leave "
        "the reasoning item out",
        "input",
    )
