"""The key of a server. It has an environment variable of its own, so that one that is there for other tools goes to no
server by accident, and it leaves only when that was asked for."""

from __future__ import annotations

import ipaddress
import os
from typing import Literal

from octavo_loadtest.client import Address, address
from octavo_loadtest.errors import LoadTestError

VARIABLE = "OCTAVO_LOADTEST_KEY"
Sending = Literal["never", "safely", "anywhere"]
"""safely: encrypted, or to this machine; anywhere: over plain HTTP too, where everybody on the way can read it."""


def headers(url: str, sending: Sending) -> dict[str, str]:
    """What authorises requests to a server.

    Raises:
        LoadTestError: there is no key, or it would cross a network in the clear.
    """
    if sending == "never":
        return {}
    key = os.environ.get(VARIABLE, "").strip()
    if not key:
        raise LoadTestError(f"a key is to be sent, and {VARIABLE} has none")
    if not (key.isascii() and key.isprintable()):
        raise LoadTestError(f"{VARIABLE} has characters that no header can hold")
    server = address(url)
    if sending == "safely" and not (server.tls or _here(server)):
        clear = f"the key would go to {server.host} over plain HTTP, where others can read it"
        raise LoadTestError(f"{clear}: use https, or send it anywhere")
    return {"Authorization": f"Bearer {key}"}


def _here(server: Address) -> bool:
    """Whether a server is on this machine; names but localhost may lead anywhere."""
    try:
        return ipaddress.ip_address(server.host).is_loopback
    except ValueError:
        return server.host == "localhost"
