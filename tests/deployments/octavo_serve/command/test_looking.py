"""`octavo models` and `octavo status` against a server."""

from __future__ import annotations

import pytest

from octavo_serve.command.looking import models, status


def test_what_is_served_is_listed(serving, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as url:
        assert models(url, None) == 0
        assert "tiny ready 256 1" in " ".join(capsys.readouterr().out.split())
        assert status(url, None, watch=False, every=1) == 0
        assert f"{url}  ok" in capsys.readouterr().out
        assert models(f"{url}/nothing", None) == 1
    assert "Not Found" in capsys.readouterr().err
    assert status(url, None, watch=False, every=1) == 1
    assert "nothing answers at" in capsys.readouterr().err


def test_watching_goes_on_until_ctrl_c(serving, terminal) -> None:
    with serving() as url:
        watched = terminal("status", url, "--watch", "--every", "0.1")
        for _ in range(3):  # drawn again and again
            watched.until(f"{url}  ok")
        watched.until("tiny")
        watched.type("\x03")
        assert watched.process.wait(20) == 0
