"""`octavo explain` against a server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from octavo.request import Placement
from octavo_serve.api.explaining import Explaining
from octavo_serve.command.explaining import explain

HELLO = {"messages": [{"role": "user", "content": "Hello " * 20}]}


def test_why_is_told_as_tables_and_as_json(
    serving: Any, service: Any, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    client.placed = Placement("t", "shard", "load", 0, 0.1)
    service.explaining = Explaining(2**22, service.telemetry)
    with serving() as url:
        ids = [httpx.post(f"{url}/v1/chat/completions", json=HELLO).json()["id"] for _ in range(2)]
        assert explain(ids[1], url, None, as_json=False) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "It took 0." in told
        assert f"nearest: {ids[0]}" in told
        assert explain(ids[1], url, None, as_json=True) == 0
        assert json.loads(capsys.readouterr().out)["id"] == ids[1]
        assert explain("chatcmpl-0", url, None, as_json=False) == 1
    assert "nothing is remembered" in capsys.readouterr().err
