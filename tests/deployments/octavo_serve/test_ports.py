from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from octavo_serve.ports import family, free_block, here, holder_of, in_url, is_loopback, why_not

IPV6 = ["::1", "::"] if Path("/proc/net/if_inet6").exists() else []


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", *IPV6])
def test_who_holds_a_port_is_named(host: str) -> None:
    port = free_block(1)
    assert why_not(host, port) is None
    assert holder_of(port) is None
    with socket.socket(family(host)) as taken:
        taken.bind((host, port))
        taken.listen()
        said = why_not(host, port)
    assert said is not None
    assert said.startswith(f"port {port} is taken by process {os.getpid()} (")


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    assert "of 192.0.2.77 cannot be listened on" in (why_not("192.0.2.77", free_block(1)) or "")


def test_addresses() -> None:
    assert [in_url(here(host), 1) for host in ("0.0.0.0", "::", "10.0.0.1")] == ["127.0.0.1:1", "[::1]:1", "10.0.0.1:1"]
    for host in ("127.0.0.1", "127.9.9.9", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "localhost", "LOCALHOST"):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "::", "0", "127.1", "127.example.com", "localhost.example.com"):  # names may be anywhere
        assert not is_loopback(host), host
