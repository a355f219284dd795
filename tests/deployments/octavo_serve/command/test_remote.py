"""Asking a server: what it says, and a sentence for every way in which it does not."""

from __future__ import annotations

import contextlib
import socket

import pytest

from octavo_serve.command.remote import HERE, Remote, RemoteError


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OCTAVO_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def models(url: str, key: str | None = None) -> list[str]:
    with contextlib.closing(Remote(url, key)) as remote:
        return [card["id"] for card in remote.json("/v1/models")["data"]]


def test_a_url_may_end_as_people_write_it(serving) -> None:
    with serving() as url:
        for form in (url, f"{url}/", f"{url}/v1", f"{url}/v1/"):
            assert models(form) == ["tiny"]


def test_keys_come_from_the_environment(serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(key="sesame") as url:
        with pytest.raises(RemoteError, match=r"an API key is needed.*--api-key, or OCTAVO_API_KEY"):
            models(url)
        assert models(url, "sesame")
        monkeypatch.setenv("OPENAI_API_KEY", "sesame")
        assert models(url)
        monkeypatch.setenv("OCTAVO_API_KEY", "another")
        with pytest.raises(RemoteError):
            models(url)


def test_openais_key_goes_only_where_a_url_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert "authorization" not in Remote()._client.headers
    assert Remote(HERE)._client.headers["authorization"] == "Bearer secret"


def test_a_key_is_sent_as_it_was_meant_and_never_shown(serving) -> None:
    with serving(key="sésame") as url:
        assert models(url, "sésame\r\n")
        for key in ("ses\rame", "ses\name", "ses\x1b[31mame"):
            with pytest.raises(RemoteError, match="holds a control character") as refused:
                models(url, key)
            assert "ses" not in str(refused.value)


def test_what_is_refused_is_said_in_the_servers_words(serving) -> None:
    body = {"model": "tiny", "temperature": "hot", "messages": []}
    with serving() as url, contextlib.closing(Remote(url)) as remote:
        with pytest.raises(RemoteError, match="temperature must be"):
            list(remote.events("/v1/chat/completions", body))
        with pytest.raises(RemoteError, match="does not answer with JSON: is it an OpenAI-compatible server"):
            remote.json("/metrics")


@pytest.mark.parametrize("url", ["http://[", "http://a b", "nowhere://x"])
def test_what_is_no_url_is_a_sentence(url: str) -> None:
    with pytest.raises(RemoteError):
        models(url)


def test_nobody_there_is_a_sentence_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(RemoteError, match="start a server with `octavo serve`"):
            models(f"http://127.0.0.1:{taken.getsockname()[1]}")
