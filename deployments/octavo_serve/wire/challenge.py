"""How both ends of a connection show that they know a secret which neither of them says.

gateway                                     shard
    nonce g                         ──────>
                                    <──────     nonce s, HMAC(secret, "shard" g s)
    HMAC(secret, "gateway" g s)     ──────>
"""

from __future__ import annotations

import hmac
import secrets

SECRET_BYTES = 32
_NONCE = _PROOF = 32


class Stranger(Exception):
    """The other side does not know the secret."""


class Challenge:
    """One end's part.

    Args:
        secret: of the shard.
        opens: whether this end is the gateway.

    Attributes:
        first: what this end says unasked; empty at the shard.
        expected: bytes of the other side's next word; 0 when both have shown that they know the secret.
    """

    def __init__(self, secret: bytes, *, opens: bool) -> None:
        self._secret = secret
        self._opens = opens
        self._own = secrets.token_bytes(_NONCE)
        self._nonces = b""
        self.first = self._own if opens else b""
        self.expected = _NONCE + _PROOF if opens else _NONCE

    def answer(self, word: bytes) -> bytes:
        """What to say to the other side's word, which has the expected length; empty if nothing.

        Raises:
            Stranger: it proves nothing.
        """
        if self._opens:
            self._nonces = self._own + word[:_NONCE]
            self._check(b"shard", word[_NONCE:])
            return self._proof(b"gateway")
        if not self._nonces:
            self._nonces = word + self._own
            self.expected = _PROOF
            return self._own + self._proof(b"shard")
        self._check(b"gateway", word)
        return b""

    def _check(self, who: bytes, proof: bytes) -> None:
        if not hmac.compare_digest(proof, self._proof(who)):
            raise Stranger
        self.expected = 0

    def _proof(self, who: bytes) -> bytes:
        return hmac.digest(self._secret, who + self._nonces, "sha256")
