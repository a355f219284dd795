"""The key leaves only when asked, and not where others can read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo_loadtest import keys, store
from octavo_loadtest.cli import app
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.fake_server import Behaviour, running


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.VARIABLE, "sk-mine")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")


@pytest.mark.parametrize("url", ["https://llm.example", "http://127.0.0.1:8000", "http://[::1]:1", "localhost:8000"])
def test_safe_places(url: str) -> None:
    assert keys.headers(url, "safely") == {"Authorization": "Bearer sk-mine"}


@pytest.mark.parametrize("url", ["http://10.0.0.7:8000", "http://llm.example", "llm.example", "http://localhost.evil"])
def test_plain_http_to_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(LoadTestError, match="plain HTTP"):
        keys.headers(url, "safely")
    assert keys.headers(url, "anywhere") == {"Authorization": "Bearer sk-mine"}


@pytest.mark.parametrize("url", ["https://llm.example", "http://127.0.0.1:8000"])
def test_unasked_it_goes_nowhere(url: str) -> None:
    assert keys.headers(url, "never") == {}


@pytest.mark.parametrize(("value", "said"), [("", "has none"), (" \n", "has none"), ("a\r\nb", "no header can hold")])
def test_a_key_that_is_none(value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.VARIABLE, value)
    with pytest.raises(LoadTestError, match=said):
        keys.headers("https://llm.example", "safely")


LOAD = ["--scale", "0.02", "--requests", "3", "--rate", "50", "--warmup", "1"]


def test_a_server_that_wants_a_key(tmp_path: Path) -> None:
    """Unasked nothing is sent, though the variable is there; asked it opens the door, and no file has it."""
    with running(Behaviour(key="sk-mine", itl=0.0, ttft=0.0)) as fake:
        refused = CliRunner().invoke(app, ["load", fake.url, *LOAD, "--out", str(tmp_path)])
        assert (refused.exit_code, "401" in refused.stderr) == (2, True)
        taken = CliRunner().invoke(app, ["load", fake.url, *LOAD, "--send-key", "safely", "--out", str(tmp_path)])
        assert taken.exit_code == 0, taken.stderr
    (run,) = store.runs_of(tmp_path)
    assert store.read(run).records[0].ok
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"sk-mine" in file.read_bytes()]
