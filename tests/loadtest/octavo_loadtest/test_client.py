"""Where the load tester sends: addresses as URLs and the `Host` header say them."""

from __future__ import annotations

import pytest

from octavo_loadtest.client import Client, address


@pytest.mark.parametrize(
    ("url", "host", "authority", "again"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000/v1", "localhost", "localhost:8000", "http://localhost:8000"),
        ("http://[::1]:8000/v1", "::1", "[::1]:8000", "http://[::1]:8000"),
        ("https://llm.example/a/v1/", "llm.example", "llm.example:443", "https://llm.example:443/a"),
    ],
)
def test_a_server_is_called_what_its_url_says(url: str, host: str, authority: str, again: str) -> None:
    server = address(url)
    assert (server.host, server.authority, server.url) == (host, authority, again)
    head = Client(server, {}).request("GET", "/health").split(b"\r\n")
    assert f"Host: {authority}".encode() in head
