"""Whatever the command says, each line is one JSON object."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from octavo_serve.command import json_lines
from octavo_serve.command.json_lines import JsonLines


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_line_is_an_object_with_serves_names(capsys: pytest.CaptureFixture[str]) -> None:
    console = json_lines.console(True)
    console.print("\n[bold green]Serving[/] m at [bold]http://x[/] after 1.0 s.\nAsk it:\n")
    console.print("[bold red]Not serving:[/]", end=" ")
    console.print("x" * 500, markup=False, soft_wrap=True)
    lines = read(capsys.readouterr().out)
    assert [(line["levelname"], line["message"]) for line in lines] == [
        ("INFO", "Serving m at http://x after 1.0 s."),
        ("INFO", "Ask it:"),
        ("ERROR", "Not serving: " + "x" * 500),
    ]
    assert {"asctime", "process", "component_name", "timestamp_ns"} <= lines[0].keys()


def test_a_line_that_is_json_stays_as_it_is() -> None:
    lines = JsonLines(out := io.StringIO())
    lines.write('{"message": "a"}\n{not json}\n[1]\nbeg')
    assert [line["message"] for line in read(out.getvalue())] == ["a", "{not json}", "[1]"]
    lines.write("un\n")
    assert read(out.getvalue())[-1]["message"] == "begun"


def test_people_read_text(capsys: pytest.CaptureFixture[str]) -> None:
    json_lines.console(False).print("[bold]Serving[/] m")
    assert capsys.readouterr().out == "Serving m\n"
