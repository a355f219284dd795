from __future__ import annotations

import pytest
from starlette.requests import Request

from octavo_serve.api.access import Caller
from octavo_serve.http.askers import ADDRESS, asker_of


def request(told: str | None, client: str | None = "127.0.0.1") -> Request:
    headers = [] if told is None else [(ADDRESS.encode(), told.encode())]
    return Request({"type": "http", "headers": headers, "client": None if client is None else (client, 1)})


@pytest.mark.parametrize(
    ("told", "client", "asker"),
    [
        ("192.0.2.7", "127.0.0.1", "192.0.2.7"),
        (None, "192.0.2.8", "192.0.2.8"),
        ("2001:db8:1:2:3::4", "127.0.0.1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "127.0.0.1", "::ffff:192.0.2.7"),
        ("made up" * 100, "127.0.0.1", ""),
        (None, None, ""),
    ],
)
def test_an_asker_is_a_key_or_a_network(told: str | None, client: str | None, asker: str) -> None:
    assert asker_of(Caller(), request(told, client)) == asker
    assert asker_of(Caller(name="ops"), request(told, client)) == "ops"
