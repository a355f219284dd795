"""Who asks, as far as a gateway can tell: the key, or without keys the network that the connection came from.

Askers take turns where new grammars are compiled. A header, a session or a cache namespace costs nothing to make up; an
address takes a machine in that network. Without keys all who come by one proxy or from one machine are one asker.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from starlette.requests import HTTPConnection

from octavo_serve.api.access import Caller

ADDRESS = "x-octavo-address"
"""Header with a connection's address, which the front sets in place of what a client may have sent. Where another front
passes on what clients send, they may make it up."""

IPV6_NETWORK = 64
"""Bits of an IPv6 address that its holder cannot choose."""


def asker_of(caller: Caller, connection: HTTPConnection) -> str:
    """The name under which a request waits for its turn; "" where nothing is known."""
    if caller.name:
        return caller.name
    told = connection.headers.get(ADDRESS) or ("" if connection.client is None else connection.client.host)
    try:
        address = ip_address(told)
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(ip_network((address, IPV6_NETWORK), strict=False))
    return told
